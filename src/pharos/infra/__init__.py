"""Domain-free machinery: settings, database, jobs, blobs, logs, errors."""
