"""What every part may use, and what uses no other part: files, errors, work, distributed sums, the parser."""
