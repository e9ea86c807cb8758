//! The node's configuration: see `weft_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: weft_fuzz::plant("config"), |bytes: &[u8]| weft_fuzz::config(bytes));
