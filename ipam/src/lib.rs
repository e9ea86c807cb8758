//! Which address is whose: ranges, allocation and the store.
