/* An MPI program: each rank says its first argument, who and where it is, and the sum of all ranks' numbers. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int rank, size, length, sum;
    char name[MPI_MAX_PROCESSOR_NAME];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(name, &length);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("%s rank %d of %d on %s sum %d\n", argc > 1 ? argv[1] : "", rank, size, name, sum);
    MPI_Finalize();
    return 0;
}
