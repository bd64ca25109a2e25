//! What `fuzz` asks of resume tokens. Not for use by the program.

use super::token::Tokens;

/// Takes `content` as the content of a token with our own signature, behind which everything is believed: it is read to
/// its end or refused. What was read is written such that it reads the same.
pub fn read_token_content(content: &[u8]) {
    let tokens = Tokens::new(&[7; 32]);
    let Some(position) = tokens.open(&tokens.authenticate(content, "scope"), "scope") else { return };
    let again = tokens.seal(&position, "scope");
    assert_eq!(tokens.open(&again, "scope"), Some(position));
    assert_eq!(tokens.open(&again, "another"), None);
}

/// Takes `text` as a token. Nobody guesses a signature.
pub fn read_token(text: &str) {
    assert_eq!(Tokens::new(&[7; 32]).open(text, "scope"), None);
}
