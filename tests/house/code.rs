//! What a source file uses, read from its syntax tree.

#![allow(clippy::unwrap_used)] // a test may

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};
use syn::{Attribute, ExprUnsafe, Ident, ImplItem, Item, ItemMod, ItemUse, Path, UseTree};

/// The code of one file that is part of a build without tests, to its last line.
#[derive(Default)]
pub(crate) struct Code {
    /// Each path into the crate, from its root: `["sys", "ring", "Ring"]`.
    pub(crate) paths: BTreeSet<Vec<String>>,
    /// Whether the file holds unsafe code.
    pub(crate) has_unsafe: bool,
    /// What the file hands on from other modules: the name it has here, and its path from the crate's root.
    pub(crate) handed_on: BTreeMap<String, Vec<String>>,
    /// The types and traits that the rest of the crate can name.
    pub(crate) public_types: BTreeSet<String>,
}

impl Code {
    /// Reads `text`, which is `file` (`src/a/b.rs`).
    pub(crate) fn read(file: &str, text: &str) -> Self {
        let tree = syn::parse_file(text).unwrap_or_else(|e| panic!("{file} does not parse: {e}"));
        let module = module_of(file);
        let mut reader =
            Reader { depth: module.len(), module, children: children(&tree), code: Self::default() };
        reader.visit_file(&tree);
        reader.code
    }

    /// The rooms the file uses, or `sys::module`.
    pub(crate) fn rooms(&self) -> BTreeSet<String> {
        let name = |path: &Vec<String>| match path.as_slice() {
            [sys, module, ..] if sys == "sys" => format!("sys::{module}"),
            [room, ..] => room.clone(),
            [] => String::new(),
        };
        let mut rooms: BTreeSet<String> =
            self.paths.iter().chain(self.handed_on.values()).map(name).collect();
        rooms.retain(|r| r.starts_with(|c: char| c.is_ascii_lowercase()));
        rooms
    }
}

/// The path of the module that `file` is.
pub(crate) fn module_of(file: &str) -> Vec<String> {
    let inside = file.split_once("src/").map_or(file, |(_, inside)| inside);
    let inside = inside.trim_end_matches(".rs").trim_end_matches("/mod");
    let is_root = matches!(inside, "lib" | "main");
    if is_root { Vec::new() } else { inside.split('/').map(str::to_owned).collect() }
}

/// Whether an item with these attributes is built for tests only.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Ok(list) = attribute.meta.require_list() else { return false };
        let words = list.tokens.to_string();
        attribute.path().is_ident("cfg") && (words == "test" || words.starts_with("all (test"))
    })
}

/// The modules that a file declares, each in a file of its own.
fn children(tree: &syn::File) -> BTreeSet<String> {
    let declared = tree.items.iter().filter_map(|item| match item {
        Item::Mod(module) if module.content.is_none() && !is_for_tests(&module.attrs) => {
            Some(module.ident.to_string())
        }
        _ => None,
    });
    declared.collect()
}

struct Reader {
    module: Vec<String>,
    /// Length of the path of the file's own module.
    depth: usize,
    children: BTreeSet<String>,
    code: Code,
}

impl Reader {
    /// The path from the crate's root, if what is written begins there, at this module, above it or at a module it
    /// declares.
    fn path_from_root(&self, words: &[String]) -> Option<Vec<String>> {
        let mut path = match words.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            Some(name) if self.children.contains(name) => self.module[..self.depth].to_vec(),
            _ => return None,
        };
        for word in words {
            match word.as_str() {
                "crate" | "self" => {}
                "super" => drop(path.pop()),
                name => path.push(name.to_owned()),
            }
        }
        Some(path)
    }

    /// Notes a path as written.
    fn note(&mut self, words: &[String]) {
        self.code.paths.extend(self.path_from_root(words));
    }

    /// Notes what a `pub use` hands on, which is no use of it.
    fn hand_on(&mut self, front: &mut Vec<String>, tree: &UseTree) {
        let (name, last) = match tree {
            UseTree::Path(path) => {
                front.push(path.ident.to_string());
                self.hand_on(front, &path.tree);
                front.pop();
                return;
            }
            UseTree::Group(group) => return group.items.iter().for_each(|item| self.hand_on(front, item)),
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(rename) => (&rename.rename, &rename.ident),
            UseTree::Glob(_) => return self.note(front),
        };
        front.push(last.to_string());
        if let Some(path) = self.path_from_root(front) {
            self.code.handed_on.insert(name.to_string(), path);
        }
        front.pop();
    }

    /// Notes a type that more than its own module can name.
    fn note_type(&mut self, visibility: &syn::Visibility, name: &Ident) {
        let is_public = match visibility {
            syn::Visibility::Public(_) => true,
            syn::Visibility::Restricted(to) => to.path.is_ident("crate"),
            syn::Visibility::Inherited => false,
        };
        if is_public {
            self.code.public_types.insert(name.to_string());
        }
    }

    fn note_tree(&mut self, front: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                front.push(path.ident.to_string());
                self.note_tree(front, &path.tree);
                front.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.note_tree(front, item)),
            UseTree::Name(name) => self.note_leaf(front, &name.ident),
            UseTree::Rename(rename) => self.note_leaf(front, &rename.ident),
            UseTree::Glob(_) => self.note(front),
        }
    }

    fn note_leaf(&mut self, front: &mut Vec<String>, name: &Ident) {
        front.push(name.to_string());
        self.note(front);
        front.pop();
    }

    /// A macro's input is no syntax tree: every run of words joined by `::` in it counts as a path.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let (mut words, mut colons) = (Vec::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Ident(word) => {
                    if colons != 2 {
                        self.note(&words);
                        words.clear();
                    }
                    self.code.has_unsafe |= word == "unsafe";
                    words.push(word.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    // `crate::{a, b}`: the words before the braces belong to each inside.
                    if colons == 2
                        && let Ok(tree) = grouped(&words, &group)
                    {
                        self.note_tree(&mut Vec::new(), &tree);
                    }
                    self.note(&words);
                    words.clear();
                    colons = 0;
                    self.note_tokens(group.stream());
                }
                _ => {
                    self.note(&words);
                    words.clear();
                    colons = 0;
                }
            }
        }
        self.note(&words);
    }
}

fn grouped(words: &[String], group: &proc_macro2::Group) -> syn::Result<UseTree> {
    syn::parse_str(&format!("{}::{group}", words.join("::")))
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Const(i) => &i.attrs,
            Item::Enum(i) => &i.attrs,
            Item::Fn(i) => &i.attrs,
            Item::Impl(i) => &i.attrs,
            Item::Macro(i) => &i.attrs,
            Item::Mod(i) => &i.attrs,
            Item::Static(i) => &i.attrs,
            Item::Struct(i) => &i.attrs,
            Item::Trait(i) => &i.attrs,
            Item::Type(i) => &i.attrs,
            Item::Use(i) => &i.attrs,
            _ => return visit::visit_item(self, item),
        };
        if is_for_tests(attributes) {
            return;
        }
        match item {
            Item::Enum(i) => self.note_type(&i.vis, &i.ident),
            Item::Struct(i) => self.note_type(&i.vis, &i.ident),
            Item::Trait(i) => self.note_type(&i.vis, &i.ident),
            Item::Type(i) => self.note_type(&i.vis, &i.ident),
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Fn(i) => &i.attrs,
            ImplItem::Const(i) => &i.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        // At the file's own level; `pub(super)` is as good as `pub` to those beside it.
        if self.module.len() == self.depth && !matches!(item.vis, syn::Visibility::Inherited) {
            self.hand_on(&mut Vec::new(), &item.tree);
        } else {
            self.note_tree(&mut Vec::new(), &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let words: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.note(&words);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.note_tokens(call.tokens.clone());
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {} // `pub(super)` is no use of the module above

    fn visit_expr_unsafe(&mut self, block: &'ast ExprUnsafe) {
        self.code.has_unsafe = true;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.code.has_unsafe |= signature.unsafety.is_some();
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.code.has_unsafe |= item.unsafety.is_some();
        visit::visit_item_impl(self, item);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.code.has_unsafe = true;
        visit::visit_item_foreign_mod(self, item);
    }
}
