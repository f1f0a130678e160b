//! Reads recipes: which packages a guest is made of, and what of them goes into it (`images/README.md`).

use anyhow::{Context, Result, bail};

/// What one or several recipe files say together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// Packages to unpack, `NAME` or `NAME/SUITE`.
    pub packages: Vec<String>,
    /// The kernel's metapackage, in the same form.
    pub kernel: String,
    /// Module names in loading order.
    pub modules: Vec<String>,
    /// Files to copy.
    pub files: Vec<String>,
    /// Where busybox lies.
    pub busybox: String,
}

impl Recipe {
    /// Reads the texts one after the other.
    pub fn parse(texts: &[&str]) -> Result<Self> {
        let mut recipe = Self::default();
        for line in texts.iter().flat_map(|text| text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (word, value) =
                line.split_once(' ').with_context(|| format!("\"{line}\" in a recipe has no value"))?;
            let value = value.trim().to_owned();
            match word {
                "package" => recipe.packages.push(value),
                "kernel" => recipe.kernel = value,
                "module" => recipe.modules.push(value),
                "file" => recipe.files.push(value),
                "busybox" => recipe.busybox = value,
                _ => bail!("\"{word}\" is no word of a recipe; use package, kernel, module, file or busybox"),
            }
        }
        if recipe.kernel.is_empty() || recipe.busybox.is_empty() {
            bail!("a recipe needs the words kernel and busybox");
        }
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_two_texts_are_joined_in_order() {
        let recipe =
            Recipe::parse(&["package a\nbusybox bin/b # x\n", "kernel k/s\nmodule m1\nmodule m2\n"]).unwrap();
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(recipe.packages, words(&["a"]));
        assert_eq!(recipe.modules, words(&["m1", "m2"]));
        assert_eq!((recipe.kernel.as_str(), recipe.busybox.as_str()), ("k/s", "bin/b"));
    }

    #[test]
    fn parse_unknown_word_is_named() {
        let error = Recipe::parse(&["kernal k\n"]).unwrap_err().to_string();
        assert!(error.starts_with("\"kernal\" is no word"), "{error}");
    }
}
