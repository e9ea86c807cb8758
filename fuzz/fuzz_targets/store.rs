//! Records and rows of the store: see `weft_fuzz::store`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: weft_fuzz::plant("store"), |bytes: &[u8]| weft_fuzz::store(bytes));
