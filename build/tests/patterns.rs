//! Patterns mean what they mean to BuildKit (moby/patternmatcher), and nothing makes them slow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use cloister_build::context::{Below, Patterns, clean, read_ignore_file};
use proptest::prelude::*;

/// How a path is meant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Means {
    Nothing,
    ThePath,
    AParent,
}
use Means::{AParent, Nothing, ThePath};

/// One pattern, one path, and how it is meant.
const SINGLE: &[(&str, &str, Means)] = &[
    // ** at either end.
    ("**", "a", ThePath),
    ("**", "a/b", ThePath),
    ("**/", "a", ThePath),
    ("**/**", "a/b", ThePath),
    ("src/**", "src", Nothing),
    ("src/**", "src/a", ThePath),
    ("src/**", "src/a/b", ThePath),
    ("src**", "srcs/a", ThePath),
    ("**/src", "src", ThePath),
    ("**/src", "a/src", ThePath),
    ("**/src", "a/b/src", ThePath),
    ("**/src", "src/a", AParent),
    ("**/src", "mysrc", Nothing),
    ("**src", "a/mysrc", ThePath),
    ("**/.git", ".git", ThePath),
    ("**/.git", "a.git", Nothing),
    ("**/a/b", "a/b", ThePath),
    ("**/a/b", "c/a/b", ThePath),
    ("**/a/b", "c/d/a/b", ThePath),
    // ** within.
    ("**/src/*", "a/src/b", ThePath),
    ("**/src/*", "a/src/b/c", AParent),
    ("**/src/**", "a/src/b/c", ThePath),
    ("**/*.txt", "a.txt", ThePath),
    ("**/**/*.txt", "a.txt", ThePath),
    ("**/**/*.txt", "a/b/c.txt", ThePath),
    ("**/**/*.md", "a/b/c.txt", Nothing),
    ("**/a*txt", "b/c/a.b.txt", ThePath),
    ("a**/*.txt", "a/b.txt", ThePath),
    ("a**/*.txt", "ab/c/d.txt", ThePath),
    ("a/*.txt**", "a/b.txt", ThePath),
    ("a/**/b", "a/b", ThePath),
    ("a/**/b", "a/c/d/b", ThePath),
    ("a/**/b", "a/cb", Nothing),
    ("***", "a/b", ThePath),
    // One level.
    ("*", "a", ThePath),
    ("*", "a/b", AParent),
    ("*.go", "a.go", ThePath),
    ("a/*.txt", "a/b.txt", ThePath),
    ("a/*.txt", "a/b/c.txt", Nothing),
    ("a*/b", "ac/b", ThePath),
    ("a*/b", "a/c/b", Nothing),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/f", ThePath),
    ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Nothing),
    ("a*b?c*x", "abxbbxdbxebxczzx", ThePath),
    ("a*b?c*x", "abxbbxdbxebxczzy", Nothing),
    ("a?b", "a☺b", ThePath),
    ("a???b", "a☺b", Nothing),
    ("a?b", "a/b", Nothing),
    ("a?b", "ab", Nothing),
    (".*", ".env", ThePath),
    (".*", "env", Nothing),
    // Brackets.
    ("a[b-d]e", "ace", ThePath),
    ("a[b-d]e", "ae", Nothing),
    ("a[^b-d]e", "aze", ThePath),
    ("a[^b-d]e", "ace", Nothing),
    ("a[^b]e", "a/e", ThePath),
    ("[a-ζ]*", "α", ThePath),
    ("*[a-ζ]", "A", Nothing),
    ("[\\]a]", "]", ThePath),
    ("[\\-x]", "-", ThePath),
    ("[x\\-]", "z", Nothing),
    ("[.+(]", "+", ThePath),
    ("a]b", "a]b", ThePath),
    // What regular expressions would make something of.
    ("a.b", "a.b", ThePath),
    ("a.b", "aZb", Nothing),
    ("a(b)c/d", "a(b)c/d", ThePath),
    ("a.|)$(}+{bc", "a.|)$(}+{bc", ThePath),
    ("dist/*.whl", "dist/x-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", ThePath),
    ("a^b", "a^b", ThePath),
    ("a^b*", "a^bc", Nothing),
    ("a\\*b", "a*b", ThePath),
    ("a\\*b", "acb", Nothing),
    ("a\\\\", "a\\", ThePath),
    // Spelling.
    (" docs/ ", "docs", ThePath),
    ("docs//./api", "docs/api", ThePath),
    ("docs/../src", "src/a", AParent),
    ("docs", "docs/api/a.md", AParent),
    ("docs", "docs2", Nothing),
    ("/docs", "docs", Nothing),
];

/// Several patterns, one path, and whether it is meant.
const SEVERAL: &[(&[&str], &str, bool)] = &[
    (&[], "a", false),
    (&["", "  "], "a", false),
    (&["!a", "*"], "a", true),
    (&["*", "!a"], "a", false),
    (&["docs", "!docs/README.md"], "docs/README.md", false),
    (&["docs/", "!docs/README.md"], "docs/a.md", true),
    (&["docs/*", "!docs/README.md"], "docs/README.md", false),
    (&["docs", " !docs/README.md "], "docs/README.md", false),
    (&["**", "!util/web"], "util/web/a", false),
    (&["**", "!util/web", "util/web/a"], "util/web/a", true),
    (&["**", "!dist/*.whl"], "dist/a+b.whl", false),
    (&["*", "!*.c", "b.c"], "a.c", false),
    (&["*", "!*.c", "b.c"], "b.c", true),
];

fn patterns(list: &[&str]) -> Patterns {
    Patterns::parse(list.iter().copied()).unwrap()
}

/// What a walk from the root to `path` gives.
fn walked(patterns: &Patterns, path: &str) -> bool {
    let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
    let below = parents.fold(Below::default(), |below, parent| patterns.matches_in(parent, &below).1);
    patterns.matches_in(path, &below).0
}

#[test]
fn one_pattern_means_paths_and_what_is_below_them() {
    for (pattern, path, means) in SINGLE {
        let list = patterns(&[pattern]);
        assert_eq!(
            list.matches_in(path, &Below::default()).0,
            *means == ThePath,
            "{pattern:?} {path:?} itself"
        );
        assert_eq!(list.matches(path), *means != Nothing, "{pattern:?} {path:?}");
        assert_eq!(walked(&list, path), *means != Nothing, "{pattern:?} {path:?} on a walk");
    }
}

#[test]
fn the_last_pattern_decides() {
    for (list, path, means) in SEVERAL {
        assert_eq!(patterns(list).matches(path), *means, "{list:?} {path:?}");
        assert_eq!(walked(&patterns(list), path), *means, "{list:?} {path:?} on a walk");
    }
}

#[test]
fn an_exception_for_a_folder_nothing_had_meant_is_forgotten_below_it_on_a_walk() {
    let list = patterns(&["a/x", "!a"]);
    assert!(!list.matches("a/x"));
    assert!(walked(&list, "a/x"));
}

#[test]
fn patterns_that_mean_nothing_are_refused() {
    for pattern in [
        "!",
        "[",
        "[^",
        "[]",
        "[^]",
        "[]a]",
        "[-]",
        "[x-]",
        "[-x]",
        "[a-b-c]",
        "[^bc",
        "a[",
        "[z-a]",
        "\\",
        "a\\",
        "[a\\]",
        "[*]",
        "[a?]",
        "[[:alpha:]]",
        "\\d",
        "\\é",
    ] {
        let error = Patterns::parse([pattern]).expect_err(pattern);
        assert_eq!(error.pattern, pattern);
        assert!(error.to_string().len() > pattern.len() + 20, "{error}");
    }
}

#[test]
fn a_line_break_in_a_name_is_passed_by_one_star_and_not_by_two() {
    assert!(patterns(&["a*b"]).matches("a\nb"));
    assert!(patterns(&["x/**/a*b"]).matches("x/y/ab"));
    assert!(!patterns(&["x/**/a*b"]).matches("x/\n/ab"));
}

#[test]
fn an_ignore_file_is_read_as_docker_does() {
    let text = "\u{feff}# comment\r\n\n  node_modules/  \r\n/dist\n!/dist/keep\n ! a//b \n #no comment\n/\n!\n./c/../d\nlast";
    let read = read_ignore_file(text.as_bytes()).unwrap();
    assert_eq!(read, ["node_modules", "dist", "!dist/keep", "!a/b", "#no comment", "/", "!", "d", "last"]);
}

#[test]
fn an_endless_ignore_file_is_refused() {
    let error = read_ignore_file(std::io::repeat(b'a')).unwrap_err();
    assert!(error.to_string().contains("line 1 is longer"), "{error}");
    let error = read_ignore_file(std::io::repeat(b'\n')).unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    assert!(read_ignore_file(&b"a\n\xff\n"[..]).unwrap_err().to_string().contains("line 2 is not UTF-8"));
}

#[test]
fn a_pattern_made_to_be_slow_is_not() {
    let pattern = "**/*a".repeat(200) + "b";
    let path = "a/".repeat(2000) + "a";
    assert!(!patterns(&[&pattern]).matches_in(&path, &Below::default()).0);
}

proptest! {
    #[test]
    fn a_path_without_special_characters_means_itself_and_what_is_below(path in "[a-z.+]{1,8}(/[a-z.+]{1,8}){0,3}") {
        let path = clean(&path);
        prop_assume!(!path.starts_with("..") && path != ".");
        let list = patterns(&[&path]);
        prop_assert!(list.matches(&path));
        let (below, beside) = (format!("{path}/below"), format!("{path}x"));
        prop_assert!(list.matches(&below));
        prop_assert!(!list.matches(&beside));
    }

    #[test]
    fn without_exceptions_a_walk_and_a_single_question_agree(
        list in prop::collection::vec("[a*/?]{1,5}", 0..4),
        path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
    ) {
        let list = Patterns::parse(list.iter().map(String::as_str)).unwrap();
        prop_assert_eq!(walked(&list, &path), list.matches(&path));
    }

    #[test]
    fn any_text_is_read_or_refused(pattern in "\\PC{0,24}", path in "\\PC{0,24}") {
        if let Ok(list) = Patterns::parse([pattern.as_str()]) {
            let _ = list.matches(&path);
        }
    }

    #[test]
    fn cleaning_twice_changes_nothing(path in "[a./]{0,16}") {
        prop_assert_eq!(clean(&clean(&path)), clean(&path));
    }
}
