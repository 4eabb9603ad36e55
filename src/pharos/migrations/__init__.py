"""The schema's history. A step can run under the code before it, and fences its tables in the same step."""
