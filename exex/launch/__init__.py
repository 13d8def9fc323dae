"""How ranks start: what a launcher tells, which one belongs to the MPI library, and a job in the foreground."""
