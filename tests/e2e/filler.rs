//! The engine writes filler, the wrapper leaves it out; they share no code.

#[test]
fn engine_and_wrapper_mean_the_same_by_filler() {
    use standfast_link::{FILLER_HEADER, FILLER_KEY, is_filler_record};
    for value in [None, Some(b"v".as_slice())] {
        for headers in [&[FILLER_HEADER][..], &[], &[FILLER_HEADER, "x"]] {
            for key in [Some(FILLER_KEY), Some(b"k".as_slice()), None] {
                let names = || headers.iter().copied();
                assert_eq!(
                    is_filler_record(key, value, names()),
                    standfast::is_filler(key, value, names()),
                    "{key:?} {value:?} {headers:?}"
                );
            }
        }
    }
    assert!(standfast::is_filler(
        Some(FILLER_KEY),
        None,
        [FILLER_HEADER]
    ));
}
