"""Models of every architecture people have, as files, and pruners in processes of their own."""
