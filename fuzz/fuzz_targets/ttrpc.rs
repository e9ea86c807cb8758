//! Requests to the services, and other texts that a shim is given: see `weft_fuzz::ttrpc`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: weft_fuzz::plant("ttrpc"), |bytes: &[u8]| weft_fuzz::ttrpc(bytes));
