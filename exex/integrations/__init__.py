"""exex under libraries that bring their own idea of parallel work: one module for each. They run in the client.

Each imports its library, none is imported by exex itself.
"""
