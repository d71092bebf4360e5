"""Parts of the report that have a home of their own."""
