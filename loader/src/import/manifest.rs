//! From YAML to objects, and each object to whoever knows its kind.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Imported, Left, Notes, Unreadable, certificate, cilium,
    fields::{Fields, Wrong},
    kubernetes,
    policy::Policy,
    write::{self, Section},
};
use crate::config::{Source, value::Label};

/// Reads manifests: any number of documents in each file, YAML or JSON, which is a part of YAML. Policies without a namespace are of `namespace`.
///
/// # Errors
/// One is no YAML, or no manifest that Kubernetes would take.
pub fn read(files: &[Source], namespace: &str) -> Result<Imported, Unreadable> {
    let mut reader = Reader {
        namespace,
        names: BTreeSet::new(),
        authority: certificate::Authority::default(),
        sections: Vec::new(),
        left: Vec::new(),
    };
    for file in files {
        for (number, document) in documents(file)?.into_iter().enumerate() {
            let wrong = |Wrong(why): Wrong| {
                Unreadable(format!("{}: document {}: {why}", file.name, number + 1))
            };
            let fields = Fields::of("", document).map_err(wrong)?;
            reader.document(&file.name, fields).map_err(wrong)?;
        }
    }
    let mut toml = String::new();
    if reader
        .left
        .iter()
        .all(|left| left.effect != super::Effect::Refused)
    {
        toml = write::toml(&reader.authority, &reader.sections);
    }
    Ok(Imported {
        toml,
        left: reader.left,
    })
}

fn documents(file: &Source) -> Result<Vec<Value>, Unreadable> {
    // Snippets off: the line is shown as everywhere else.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_multiple_with_options(&file.text, options).map_err(|e| {
        let place = e.location().map_or((1, 1), |l| (l.line(), l.column()));
        Unreadable(file.complaint(place, e.to_string()))
    })
}

/// What has been read so far.
struct Reader<'a> {
    namespace: &'a str,
    /// Names that policies have by now.
    names: BTreeSet<(Option<String>, String)>,
    authority: certificate::Authority,
    sections: Vec<Section>,
    left: Vec<Left>,
}

/// An object: what it is called, and all but that.
struct Object {
    group: String,
    kind: String,
    name: String,
    namespace: Option<String>,
    fields: Fields,
}

impl Reader<'_> {
    fn document(&mut self, file: &str, mut fields: Fields) -> Result<(), Wrong> {
        let mut peek = fields.clone();
        let kind = peek.text("kind")?.unwrap_or_default();
        if !kind.ends_with("List") || !fields.has("items") {
            return self.object(file, fields);
        }
        for item in fields.maps("items")?.unwrap_or_default() {
            self.document(file, item)?;
        }
        Ok(())
    }

    fn object(&mut self, file: &str, fields: Fields) -> Result<(), Wrong> {
        let mut notes = Notes::default();
        let mut object = Object::of(fields, &mut notes)?;
        let mut section = Section::of(file, &object.title());
        match (object.group.as_str(), object.kind.as_str()) {
            ("cilium.io", "CiliumNetworkPolicy") => {
                let namespace = object.namespace_or(self.namespace, &mut notes);
                section.policies = self.cilium(&mut object, Some(namespace), &mut notes)?;
            }
            ("cilium.io", "CiliumClusterwideNetworkPolicy") => {
                section.policies = self.cilium(&mut object, None, &mut notes)?;
            }
            ("networking.k8s.io", "NetworkPolicy") => {
                let namespace = object.namespace_or(self.namespace, &mut notes);
                let named = (self.name(&object.name, Some(&namespace)), Some(namespace));
                let spec = object.spec()?;
                section
                    .policies
                    .extend(kubernetes::policy(spec, named, &mut notes)?);
            }
            ("cert-manager.io", "Certificate") => {
                let namespace = object.namespace_or(self.namespace, &mut notes);
                let spec = object.spec()?;
                let named = (object.name.as_str(), namespace.as_str());
                section.workload =
                    certificate::workload(spec, named, &mut self.authority, &mut notes)?;
            }
            (group, kind) => {
                other(group, kind, &mut notes);
                object.fields = Fields::none("");
            }
        }
        object.fields.take("status");
        for path in object.fields.rest() {
            notes.refuse(
                path,
                "this field is not known; more might be allowed without it",
            );
        }
        section.notes = notes
            .0
            .iter()
            .map(|(path, _, why)| format!("{path}: {why}"))
            .collect();
        self.left
            .extend(notes.0.into_iter().map(|(path, effect, why)| Left {
                file: file.to_owned(),
                object: object.title(),
                path,
                why,
                effect,
            }));
        self.sections.push(section);
        Ok(())
    }

    /// The policies of `spec` and `specs`.
    fn cilium(
        &mut self,
        object: &mut Object,
        namespace: Option<String>,
        notes: &mut Notes,
    ) -> Result<Vec<Policy>, Wrong> {
        let one = object.fields.fields("spec")?;
        let more = object.fields.maps("specs")?.unwrap_or_default();
        let mut policies = Vec::new();
        for spec in one.into_iter().chain(more) {
            let name = self.name(&object.name, namespace.as_deref());
            policies.extend(cilium::policy(spec, (name, namespace.clone()), notes)?);
        }
        Ok(policies)
    }

    /// A name that no policy has yet: DNS labels are names here, and Kubernetes' may have dots.
    fn name(&mut self, name: &str, namespace: Option<&str>) -> String {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let plain: String = name
            .chars()
            .map(|c| if is_plain(c) { c } else { '-' })
            .collect();
        let plain = plain.trim_matches('-');
        let stem: String = plain.chars().take(NAME - 5).collect();
        let stem = if stem.is_empty() {
            "policy"
        } else {
            stem.trim_end_matches('-')
        };
        let mut name = stem.to_owned();
        let mut number = 1;
        while !self.names.insert((namespace.map(Into::into), name.clone())) {
            number += 1;
            name = format!("{stem}-{number}");
        }
        name
    }
}

impl Object {
    fn of(mut fields: Fields, notes: &mut Notes) -> Result<Self, Wrong> {
        let version = fields.text("apiVersion")?.unwrap_or_default();
        let kind = fields.text("kind")?.unwrap_or_default();
        let mut metadata = match fields.fields("metadata")? {
            Some(metadata) => metadata,
            None => Fields::none(fields.at("metadata")),
        };
        let name = metadata.text("name")?.unwrap_or_default();
        let namespace = metadata.text("namespace")?;
        for path in metadata.rest() {
            notes.detail(path, "it is about the object, not about traffic");
        }
        Ok(Self {
            group: version
                .split_once('/')
                .map_or("", |(group, _)| group)
                .into(),
            kind,
            name,
            namespace: namespace.filter(|namespace| !namespace.is_empty()),
            fields,
        })
    }

    fn title(&self) -> String {
        let kind = if self.kind.is_empty() {
            "object"
        } else {
            &self.kind
        };
        match &self.namespace {
            Some(namespace) => format!("{kind} {namespace}/{}", self.name),
            None => format!("{kind} {}", self.name),
        }
    }

    fn namespace_or(&self, default: &str, notes: &mut Notes) -> String {
        let namespace = self.namespace.as_deref().unwrap_or(default);
        if namespace.parse::<Label>().is_err() {
            notes.refuse(
                "metadata.namespace",
                format!("{namespace:?} is no namespace"),
            );
        }
        namespace.to_owned()
    }

    fn spec(&mut self) -> Result<Fields, Wrong> {
        let spec = self.fields.fields("spec")?;
        Ok(spec.unwrap_or_else(|| Fields::none(self.fields.at("spec"))))
    }
}

/// An object of another kind: one that may be a policy is not passed over.
fn other(group: &str, kind: &str, notes: &mut Notes) {
    let what = match group {
        "" => format!("{kind:?} is not read"),
        group => format!("{kind:?} of {group} is not read"),
    };
    if kind.is_empty() {
        notes.refuse("kind", "it is missing: what is this?");
    } else if kind.contains("Policy") || kind.contains("Policies") {
        notes.refuse("kind", format!("{what}, and may deny what is allowed here"));
    } else {
        notes.detail("kind", format!("{what}; it is no policy"));
    }
}

/// Longest name of a policy (a DNS label).
const NAME: usize = 63;
