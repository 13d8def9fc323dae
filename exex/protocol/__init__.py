"""What is said between client, manager and worker: messages, their bytes, and the opaque payloads in them. Pure."""
