"""What the user named -> what is compared: files, tables, pairs, captions."""
