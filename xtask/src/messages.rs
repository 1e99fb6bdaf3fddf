//! `cargo xtask messages`: docs/messages.txt lists every sentence that the library and the command can show, so that
//! each new one is read once, and words that the house does not use are refused.
//!
//! A sentence is any text of two words or more in code that is not for tests: in calls, macros and constants, the help
//! of flags, and attributes of the command line. Reasons of panics are no messages: no user is to see them.

use crate::tool::{Done, cannot, root, rust_files};
use proc_macro2::{TokenStream, TokenTree};
use std::fmt::Write as _;
use std::fs;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Item, Lit, Meta};

/// Macros whose text is for developers.
const NOT_SHOWN: [&str; 12] = [
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
    "panic",
    "unreachable",
    "compile_error",
    "cfg",
    "concat",
    "include_str",
];
/// Words that STYLE has other words for.
const REFUSED: [&str; 9] = [
    "behind the end",
    "is no ",
    "nobody",
    "somebody",
    "cannot be looked at",
    "is not there",
    "of before",
    "takes no ",
    "names no ",
];
/// Where they are the right ones.
const FINE: [&str; 2] = ["there is no ", "is no longer"];

/// Checks docs/messages.txt, or writes it.
pub(crate) fn messages(write: bool) -> Done {
    let mut page = String::from(
        "# Every sentence that the library and the command can show, by file. Made by `cargo xtask messages --write`;\n\
         # read what is new aloud before it is committed.\n",
    );
    let mut refused = Vec::new();
    for file in rust_files(&["src", "cli/src"])? {
        if is_for_tests(&file) {
            continue;
        }
        let text = fs::read_to_string(root().join(&file)).map_err(|e| cannot(&file, &e))?;
        let found = sentences(&file, &text)?;
        if found.is_empty() {
            continue;
        }
        let _ = writeln!(page, "\n{file}");
        for sentence in found {
            let plain = FINE.iter().fold(sentence.clone(), |text, fine| text.replace(fine, ""));
            let word = REFUSED.iter().find(|word| plain.contains(**word));
            refused.extend(word.map(|word| format!("{file}: \"{word}\" in {sentence:?}")));
            let _ = writeln!(page, "  {}", sentence.escape_debug());
        }
    }
    let path = root().join("docs/messages.txt");
    if write {
        fs::write(&path, &page).map_err(|e| cannot(&path, &e))?;
    }
    if !refused.is_empty() {
        return Err(format!("say it in the words of docs/glossary.md:\n{}", refused.join("\n")));
    }
    let listed = fs::read_to_string(&path).unwrap_or_default();
    let differs = |a: &str, b: &str| {
        a.lines().find(|line| !b.lines().any(|l| l == *line)).map(|line| line.trim().to_owned())
    };
    if let Some(new) = differs(&page, &listed) {
        return Err(format!(
            "not in docs/messages.txt: {new}\nread it aloud, then run `cargo xtask messages --write`"
        ));
    }
    if let Some(old) = differs(&listed, &page) {
        return Err(format!(
            "docs/messages.txt lists what no code says: {old}\nrun `cargo xtask messages --write`"
        ));
    }
    Ok(true)
}

fn is_for_tests(file: &str) -> bool {
    file.ends_with("tests.rs")
        || file.ends_with("/testing.rs")
        || file.contains("/tests/")
        || file.starts_with("src/sim/")
}

/// The sentences of one file in order, each once.
fn sentences(file: &str, text: &str) -> Result<Vec<String>, String> {
    let tree = syn::parse_file(text).map_err(|e| cannot(file, &e))?;
    let mut reader = Reader { is_command: file.starts_with("cli/"), found: Vec::new() };
    reader.visit_file(&tree);
    Ok(reader.found)
}

struct Reader {
    /// In the command's crate, documentation of flags is help.
    is_command: bool,
    found: Vec<String>,
}

impl Reader {
    fn note(&mut self, text: &str) {
        let words = text.split_whitespace().filter(|w| w.chars().any(char::is_alphabetic)).count();
        if words >= 2 && !self.found.iter().any(|f| f == text) {
            self.found.push(text.to_owned());
        }
    }

    fn note_tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Literal(literal) => {
                    if let Ok(Lit::Str(text)) = syn::parse_str::<Lit>(&literal.to_string()) {
                        self.note(&text.value());
                    }
                }
                TokenTree::Group(group) => self.note_tokens(group.stream()),
                TokenTree::Ident(_) | TokenTree::Punct(_) => {}
            }
        }
    }

    /// Help: documentation and attributes of what clap derives from.
    fn note_help(&mut self, attributes: &[Attribute]) {
        for attribute in attributes {
            match &attribute.meta {
                Meta::NameValue(pair) if attribute.path().is_ident("doc") => {
                    if let Expr::Lit(text) = &pair.value
                        && let Lit::Str(text) = &text.lit
                    {
                        self.note(text.value().trim());
                    }
                }
                Meta::List(list)
                    if ["arg", "command", "value"].iter().any(|n| attribute.path().is_ident(n)) =>
                {
                    self.note_tokens(list.tokens.clone());
                }
                _ => {}
            }
        }
    }
}

/// Whether an item with these attributes is built for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("cfg")
            && a.meta.require_list().is_ok_and(|l| {
                let words = l.tokens.to_string();
                words == "test" || words.starts_with("all (test")
            })
    })
}

/// Whether clap derives flags from an item.
fn is_flags(attributes: &[Attribute]) -> bool {
    let derives = |a: &&Attribute| a.path().is_ident("derive");
    attributes.iter().filter(derives).filter_map(|a| a.meta.require_list().ok()).any(|list| {
        let words = list.tokens.to_string();
        ["Parser", "Args", "Subcommand", "ValueEnum"].iter().any(|name| words.contains(name))
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Enum(i) => &i.attrs,
            Item::Fn(i) => &i.attrs,
            Item::Impl(i) => &i.attrs,
            Item::Mod(i) => &i.attrs,
            Item::Struct(i) => &i.attrs,
            Item::Const(i) => &i.attrs,
            Item::Static(i) => &i.attrs,
            _ => return visit::visit_item(self, item),
        };
        if is_test(attributes) {
            return;
        }
        if self.is_command && is_flags(attributes) {
            self.note_help(attributes);
            match item {
                Item::Struct(i) => i.fields.iter().for_each(|f| self.note_help(&f.attrs)),
                Item::Enum(i) => {
                    for variant in &i.variants {
                        self.note_help(&variant.attrs);
                        variant.fields.iter().for_each(|f| self.note_help(&f.attrs));
                    }
                }
                _ => {}
            }
        }
        visit::visit_item(self, item);
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {} // documentation, but for help

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        self.note(&text.value());
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if call.method == "expect" {
            return self.visit_expr(&call.receiver);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = call.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default();
        if !NOT_SHOWN.contains(&name.as_str()) {
            self.note_tokens(call.tokens.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sentences;

    #[test]
    fn each_kind_of_message_is_seen_and_what_no_user_sees_is_not() {
        let text = r#"
            const A: &str = "a constant text";
            /// Help of the command.
            #[derive(clap::Parser)]
            #[command(after_help = "help at the end")]
            struct Flags {
                /// Help of a flag.
                #[arg(value_name = "a value")]
                flag: bool,
            }
            /// Documentation of a type.
            struct Other;
            fn f(x: u8) -> Result<()> {
                note(&format!("{x} in a call"));
                println!("printed by macro");
                let y = x.expect("not a message");
                assert!(y, "neither is this");
                match y { true => Err(Error::new(Kind::Io, "an error text")), _ => Err(e.hint("a hint here")) }
            }
            impl Display for Other { fn fmt(&self) { write!(f, "shown by display") } }
            #[cfg(test)]
            mod tests { fn t() { g("a test's own"); } }
        "#;
        let found = sentences("cli/src/x.rs", text).unwrap();
        let wanted = [
            "a constant text",
            "Help of the command.",
            "help at the end",
            "Help of a flag.",
            "a value",
            "{x} in a call",
            "printed by macro",
            "an error text",
            "a hint here",
            "shown by display",
        ];
        assert_eq!(found, wanted);
        assert!(!sentences("src/x.rs", text).unwrap().contains(&"Help of a flag.".to_owned()));
    }
}
