//! `underseal import`: Kubernetes' manifests as sections of this tool's configuration. Reads files, changes nothing.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Context, Error, Saying};
use crate::{
    config::{Format, Source},
    import::{self, Effect, Imported, Unreadable},
    report::Report,
};

/// What is imported.
#[derive(Args)]
pub struct Arguments {
    /// Manifests in YAML or JSON, any number of documents each; `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Fail if less is allowed than the manifests allow
    #[arg(long)]
    strict: bool,
}

/// Runs it.
///
/// # Errors
/// A file is no manifest, or something cannot be carried over without which more would be allowed. With `--strict`,
/// also if less would be.
pub fn run(context: &Context<'_>, arguments: &Arguments) -> Result<Report, Error> {
    let manifests = arguments.files.iter().map(|path| manifest(path));
    let manifests = manifests.collect::<Result<Vec<_>, _>>()?;
    let imported = import::read(&manifests, &arguments.namespace)?;
    for left in &imported.left {
        (context.say)(Saying::Notice(&format!("not carried over: {left}")));
    }
    verdict(&imported, arguments.strict)?;
    Ok(Report::Import(imported))
}

fn verdict(imported: &Imported, strict: bool) -> Result<(), Error> {
    let refusals = imported.refusals();
    if !refusals.is_empty() {
        let list: String = refusals.iter().map(|left| format!("\n  {left}")).collect();
        return Err(Error::Refused(format!(
            "without this more would be allowed than the manifests allow, so nothing is printed:{list}\n  hint: take it \
             out of the manifests if that is what you want"
        )));
    }
    let less = imported
        .left
        .iter()
        .filter(|left| left.effect == Effect::LessOpen);
    match less.count() {
        0 => Ok(()),
        count if strict => Err(Error::Refused(format!(
            "less is allowed than the manifests allow, for {count} reasons (--strict)"
        ))),
        _ => Ok(()),
    }
}

fn manifest(path: &Path) -> Result<Source, Error> {
    let unreadable =
        |error: io::Error| Unreadable(format!("cannot read {}: {error}", path.display()));
    let (name, text) = if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        ("standard input".to_owned(), text)
    } else {
        let text = fs::read_to_string(path).map_err(unreadable)?;
        (path.display().to_string(), text)
    };
    Ok(Source {
        name,
        text,
        format: Format::Yaml,
    })
}
