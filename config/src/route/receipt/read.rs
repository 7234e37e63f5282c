//! Reading a list of receipts: what of RFC 9651 it can hold.
//!
//! Our own parameters must be what we write; those of others stay as they are, and need only be well
//! formed. Everything is borrowed from the bytes.

use std::str;

use arrayvec::ArrayVec;

use super::{Item, MAX_BYTES, MAX_ITEMS, Malformed, Marks};
use crate::name::is_label;
use crate::route::Via;

/// Reads a list item by item (RFC 9651, section 4.2.1). Inner lists are none of ours.
pub(super) fn each<'v>(list: &'v [u8], mut sink: impl FnMut(Item<'v>)) -> Result<(), Malformed> {
    let list = str::from_utf8(list).map_err(|_| Malformed)?.trim_matches(' ');
    if list.len() > MAX_BYTES {
        return Err(Malformed);
    }
    let mut text = Text { text: list, at: 0 };
    for count in 0.. {
        if text.is_at_end() {
            // A list may be empty, and does not end with a comma.
            return if count == 0 { Ok(()) } else { Err(Malformed) };
        }
        if count == MAX_ITEMS {
            return Err(Malformed);
        }
        sink(text.item()?);
        text.skip(" \t");
        if text.is_at_end() {
            return Ok(());
        }
        text.expect(b',')?;
        text.skip(" \t");
    }
    Ok(())
}

/// What stands after a name: only what our own parameters hold is told apart.
enum Value<'v> {
    /// A token, or a string without escapes.
    Word(&'v str),
    Boolean(bool),
    Other,
}

/// A structured field's text, and how far it is read.
struct Text<'v> {
    text: &'v str,
    at: usize,
}

impl<'v> Text<'v> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.accept(byte) { Ok(()) } else { Err(Malformed) }
    }

    /// Takes bytes as long as they are such.
    fn take(&mut self, such: impl Fn(u8) -> bool) -> &'v str {
        let rest = &self.text[self.at..];
        let length = rest.bytes().position(|byte| !such(byte)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn skip(&mut self, these: &str) {
        self.take(|byte| these.as_bytes().contains(&byte));
    }

    fn item(&mut self) -> Result<Item<'v>, Malformed> {
        let from = self.at;
        let service = self.value()?.label()?;
        let (mut environment, mut via, mut reason) = (None, None, None);
        let (mut hop, mut parent, mut marks) = (None, None, Marks::NONE);
        // Of a parameter that is there twice the last counts (RFC 9651, section 4.2.3.2).
        while self.accept(b';') {
            self.skip(" ");
            let key = self.key()?;
            let value = if self.accept(b'=') { self.value()? } else { Value::Boolean(true) };
            match key {
                "env" => environment = Some(value.label()?),
                "via" => via = Some(Via::named(value.word()?).ok_or(Malformed)?),
                "reason" => reason = Some(value.word()?),
                "hop" => hop = Some(value.word()?),
                "parent" => parent = Some(value.word()?),
                _ => {
                    if let Some((mark, _)) = Marks::NAMES.iter().find(|(_, name)| *name == key) {
                        marks = marks.except(*mark).and(mark.when(value.boolean()?));
                    }
                }
            }
        }
        Ok(Item {
            text: &self.text[from..self.at],
            service,
            environment: environment.ok_or(Malformed)?,
            via: via.ok_or(Malformed)?,
            reason: reason.ok_or(Malformed)?,
            hop,
            parent,
            marks,
        })
    }

    fn key(&mut self) -> Result<&'v str, Malformed> {
        match self.peek() {
            Some(b'a'..=b'z' | b'*') => {
                Ok(self.take(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*')))
            }
            _ => Err(Malformed),
        }
    }

    fn value(&mut self) -> Result<Value<'v>, Malformed> {
        match self.peek().ok_or(Malformed)? {
            b'a'..=b'z' | b'A'..=b'Z' | b'*' => Ok(Value::Word(self.take(is_token))),
            b'"' => self.string(),
            b'?' => {
                self.at += 1;
                match self.accept(b'1') {
                    true => Ok(Value::Boolean(true)),
                    false => self.expect(b'0').map(|()| Value::Boolean(false)),
                }
            }
            b'0'..=b'9' | b'-' => self.number(true),
            b'@' => {
                self.at += 1;
                self.number(false)
            }
            b':' => {
                self.at += 1;
                self.take(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='));
                self.expect(b':').map(|()| Value::Other)
            }
            b'%' => self.display_string(),
            _ => Err(Malformed),
        }
    }

    fn string(&mut self) -> Result<Value<'v>, Malformed> {
        self.expect(b'"')?;
        let from = self.at;
        let mut escaped = false;
        loop {
            self.take(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\');
            if self.accept(b'"') {
                break;
            }
            self.expect(b'\\')?;
            escaped = true;
            if !self.accept(b'"') {
                self.expect(b'\\')?;
            }
        }
        Ok(if escaped { Value::Other } else { Value::Word(&self.text[from..self.at - 1]) })
    }

    /// An integer has 15 digits at most; a decimal 12 before the point and 3 after it.
    fn number(&mut self, decimal: bool) -> Result<Value<'v>, Malformed> {
        self.accept(b'-');
        let whole = self.take(|byte| byte.is_ascii_digit()).len();
        let fits = if decimal && self.accept(b'.') {
            (1..=12).contains(&whole) && (1..=3).contains(&self.take(|byte| byte.is_ascii_digit()).len())
        } else {
            (1..=15).contains(&whole)
        };
        if fits { Ok(Value::Other) } else { Err(Malformed) }
    }

    fn display_string(&mut self) -> Result<Value<'v>, Malformed> {
        self.expect(b'%')?;
        self.expect(b'"')?;
        // The bytes of a letter that is not all there yet: what is encoded has to be UTF-8.
        let mut letter = ArrayVec::<u8, 4>::new();
        loop {
            let plain = self.take(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'%');
            let ends = self.accept(b'"');
            if (ends || !plain.is_empty()) && !letter.is_empty() {
                return Err(Malformed);
            }
            if ends {
                return Ok(Value::Other);
            }
            self.expect(b'%')?;
            let hex = self.text.as_bytes().get(self.at..self.at + 2).ok_or(Malformed)?;
            if !hex.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(Malformed);
            }
            let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0);
            let byte = u8::try_from(digit(hex[0]) * 16 + digit(hex[1])).map_err(|_| Malformed)?;
            letter.try_push(byte).map_err(|_| Malformed)?;
            match str::from_utf8(&letter) {
                Ok(_) => letter.clear(),
                Err(error) if error.error_len().is_some() => return Err(Malformed),
                Err(_) => {}
            }
            self.at += 2;
        }
    }
}

impl<'v> Value<'v> {
    fn word(self) -> Result<&'v str, Malformed> {
        match self {
            Self::Word(word) if !word.is_empty() => Ok(word),
            _ => Err(Malformed),
        }
    }

    fn label(self) -> Result<&'v str, Malformed> {
        self.word().and_then(|word| if is_label(word.as_bytes()) { Ok(word) } else { Err(Malformed) })
    }

    fn boolean(self) -> Result<bool, Malformed> {
        match self {
            Self::Boolean(holds) => Ok(holds),
            _ => Err(Malformed),
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}
