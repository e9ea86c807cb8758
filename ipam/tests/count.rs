//! Numbers with names.

use weft_ipam::Store;

#[test]
fn what_several_count_is_all_there_and_ends_with_its_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.read().unwrap().counted("a").unwrap(), 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let mut txn = store.write().unwrap();
                    txn.count("a").unwrap();
                    txn.commit().unwrap();
                }
            });
        }
    });
    assert_eq!(store.read().unwrap().counted("a").unwrap(), 100);
    assert_eq!(store.read().unwrap().counted("ab").unwrap(), 0, "another name");
    let mut txn = store.write().unwrap();
    assert_eq!(txn.count("a").unwrap(), 101);
    drop(txn);
    assert_eq!(Store::open(dir.path()).unwrap().read().unwrap().counted("a").unwrap(), 100);
}

#[test]
fn who_only_looks_on_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    assert!(Store::open_existing(&path).unwrap().is_none());
    assert!(!path.exists());
    drop(Store::open(&path).unwrap());
    assert_eq!(Store::open_existing(&path).unwrap().unwrap().read().unwrap().counted("a").unwrap(), 0);
    std::fs::remove_dir_all(&path).unwrap();
    assert!(Store::open_existing(&path).unwrap().is_none());
}
