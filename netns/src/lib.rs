//! A network namespace and what is in it.
