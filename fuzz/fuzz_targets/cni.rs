//! A call of the CNI plugin: see `weft_fuzz::cni`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: weft_fuzz::plant("cni"), |bytes: &[u8]| weft_fuzz::cni(bytes));
