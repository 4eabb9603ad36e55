"""Keep it running: supervisor, doctor, configuration, migrations."""
