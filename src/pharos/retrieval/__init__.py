"""From a question to ranked passages; reads only."""
