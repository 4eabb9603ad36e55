"""Projects and documents: receive, ingest, delete. The only writer of passages."""
