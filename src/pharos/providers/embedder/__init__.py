"""The local embedding model: built once from published weights, served by a process of its own."""
