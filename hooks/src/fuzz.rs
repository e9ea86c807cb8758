//! What the fuzz targets call: the kernel's answers about filters.

use crate::tc::{acknowledged, messages, read_filter};

/// Takes `bytes` for a datagram of route netlink.
pub fn replies(bytes: &[u8]) {
    let mut length = 0;
    for (_, body) in messages(bytes) {
        length += body.len();
        let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code));
        match acknowledged(body) {
            Ok(()) => assert_eq!(code, Some(0), "an error is not taken for an acknowledgement"),
            Err(_) => assert_ne!(code, Some(0)),
        }
        let filter = read_filter(body);
        assert!(filter.name.len() <= 3 * body.len(), "{filter:?}");
    }
    assert!(length <= bytes.len(), "messages do not overlap");
}
