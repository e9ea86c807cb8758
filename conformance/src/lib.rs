//! Tests and measurements that know only binaries and specifications.
