//! A shell's text as the commands in it, far enough for documents.

/// The commands of a script, each as its words: without comments, assignments and redirections.
pub fn commands(script: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let mut command: Vec<String> = Vec::new();
    for token in tokens(script) {
        match token {
            Token::End => end(&mut all, &mut command),
            Token::Word(word) if command.is_empty() && is_assignment(&word) => {
                let value = word.split_once('=').map(|(_, value)| value).unwrap_or_default();
                all.extend(substituted(value));
            }
            Token::Word(word) => {
                all.extend(substituted(&word));
                command.push(word);
            }
        }
    }
    end(&mut all, &mut command);
    all
}

fn end(all: &mut Vec<Vec<String>>, command: &mut Vec<String>) {
    let redirected = command.iter().position(|word| word.starts_with(['<', '>']) || word.starts_with("2>"));
    command.truncate(redirected.unwrap_or(command.len()));
    if !command.is_empty() {
        all.push(std::mem::take(command));
    }
}

/// What stands in `$(…)` of a word.
fn substituted(word: &str) -> Vec<Vec<String>> {
    match word.split_once("$(").and_then(|(_, rest)| rest.rsplit_once(')')) {
        Some((inner, _)) => commands(inner),
        None => Vec::new(),
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

enum Token {
    Word(String),
    /// The end of a command.
    End,
}

fn tokens(script: &str) -> Vec<Token> {
    let script = script.replace("\\\n", " ");
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let (mut quote, mut depth) = (None, 0_usize);
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('(', None) => {
                depth += 1;
                word.get_or_insert_default().push(c);
            }
            (')', None) => {
                depth = depth.saturating_sub(1);
                word.get_or_insert_default().push(c);
            }
            (c, None) if depth > 0 => word.get_or_insert_default().push(c),
            ('#', None) if word.is_none() => while chars.next_if(|&c| c != '\n').is_some() {},
            ('&', None) if word.as_ref().is_some_and(|word| word.ends_with('>')) => {
                word.get_or_insert_default().push(c)
            }
            (';' | '|' | '&' | '\n', None) => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::End);
            }
            (c, None) if c.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}

#[test]
fn commands_are_told_apart() {
    let said = |script: &str| commands(script).iter().map(|words| words.join("·")).collect::<Vec<_>>();
    assert_eq!(said("a -b 'c d' # e\nf \\\n  g"), ["a·-b·c d", "f·g"]);
    assert_eq!(said("A=1 b; c && d | e >f 2>&1"), ["b", "c", "d", "e"]);
    assert_eq!(
        said("n=$(get -o x)\nuse $n -- $(all of it)"),
        ["get·-o·x", "all·of·it", "use·$n·--·$(all of it)"]
    );
    assert_eq!(said("a x=1 'b;c' \"d|e\""), ["a·x=1·b;c·d|e"]);
    assert_eq!(said("a 'b '\\''$|=1'\\'' c'"), ["a·b '$|=1' c"]);
}
