"""Files and folders, here and on a remote: written whole, claimed, hashed, retried."""
