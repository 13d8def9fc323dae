"""The workflow's process: apps, futures and executors, and the proxy thread that talks to the manager for them."""
