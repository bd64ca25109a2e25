//! The plans of the hot statements, with the statistics of an empty table: the state in which a queue goes wrong.
