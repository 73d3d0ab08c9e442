//! A policy as the configuration has it: what the readers make and the writer prints.

/// `[[network_policy]]`.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    /// `None`: of all namespaces.
    pub(super) namespace: Option<String>,
    pub(super) select: Select,
    /// `None`: it does not restrict this direction.
    pub(super) ingress: Option<Vec<Rule>>,
    pub(super) egress: Option<Vec<Rule>>,
}

/// Which workloads; all, if it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Select {
    pub(super) labels: Vec<(String, String)>,
    pub(super) expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub(super) operator: &'static str,
    pub(super) values: Vec<String>,
}

impl Select {
    /// Workloads of every namespace, where those of the policy's own would be meant.
    pub(super) fn any_namespace() -> Self {
        Self {
            labels: Vec::new(),
            expressions: vec![Expression {
                key: NAMESPACE.into(),
                operator: "Exists",
                values: Vec::new(),
            }],
        }
    }

    /// The same, without workloads of which nothing but the address is known: those of another node that no file names
    /// have no labels, so all that asks for the lack of one would mean them. `own` says whether the policy has a
    /// namespace, which is meant where none is named.
    pub(super) fn of_known(mut self, own: bool) -> Self {
        let is_negative = |it: &Expression| matches!(it.operator, "NotIn" | "DoesNotExist");
        let names = |it: &&Expression| it.key == NAMESPACE;
        let by_label = self.labels.iter().any(|(key, _)| key == NAMESPACE);
        let mut of_namespace = self.expressions.iter().filter(names).peekable();
        let is_default = own && !by_label && of_namespace.peek().is_none();
        let is_known = by_label || is_default || of_namespace.any(|it| !is_negative(it));
        if self.expressions.iter().any(is_negative) && !is_known {
            self = self.and(Self::any_namespace());
        }
        self
    }

    /// What both select.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.labels.extend(other.labels);
        self.expressions.extend(other.expressions);
        self
    }
}

/// What is allowed.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    /// `None`: anybody.
    pub(super) peers: Option<Vec<Peer>>,
    /// `None`: at every port.
    pub(super) ports: Option<Vec<Port>>,
    /// Only sealed.
    pub(super) mtls: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Select(Select),
    Cidr { cidr: String, except: Vec<String> },
    Entity(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// `None`: all of the protocol.
    pub(super) port: Option<u16>,
    pub(super) end: Option<u16>,
    /// `None`: TCP, UDP and SCTP.
    pub(super) protocol: Option<&'static str>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

pub(super) const NAMESPACE: &str = "underseal/namespace";
pub(super) const SERVICE_ACCOUNT: &str = "underseal/service-account";
pub(super) const NODE: &str = "underseal/node";
