//! What the kernel answers over netlink: see `weft_fuzz::netlink`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: weft_fuzz::plant("netlink"), |bytes: &[u8]| weft_fuzz::netlink(bytes));
