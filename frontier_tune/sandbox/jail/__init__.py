"""What runs inside a sandbox: the zygote, the files of a run, and the kernel's own locks. Standard library alone.

These modules are imported under two names: ``frontier_tune.sandbox.jail`` by tests and tools, and ``jail`` inside a sandbox,
where nothing else of this library is to be seen. They therefore import each other relatively and nothing else.
"""
