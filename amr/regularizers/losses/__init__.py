"""Methods that add to the loss or replace it."""
