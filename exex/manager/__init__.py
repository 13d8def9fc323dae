"""Rank 0: holds the graph, chooses who runs what, answers the clients. Everything but `loop` is pure."""
