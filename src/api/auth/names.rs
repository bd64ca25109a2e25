//! Certificates' names and the roles that the settings give them.

use std::fmt;

use crate::domain::Problem;
use crate::domain::access::{Role, Scope};

/// One of a certificate's subject alternative names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// A host name, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
    /// A mail address.
    Email(String),
}

/// Who calls with a certificate of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRule {
    /// The name.
    pub name: CertificateName,
    /// What they may do.
    pub role: Role,
    /// Whose things they may touch.
    pub scope: Scope,
}

impl CertificateName {
    fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty())?;
        match kind {
            "dns" => Some(Self::Dns(name.to_ascii_lowercase())),
            "uri" => Some(Self::Uri(name.to_owned())),
            "email" => Some(Self::Email(name.to_owned())),
            _ => None,
        }
    }
}

/// As the settings write it.
impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Email(name) => write!(f, "email:{name}"),
        }
    }
}

impl ClientRule {
    /// Reads `uri:spiffe://prod/shop publisher shop`: a name, a role, a tenant or `*`.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        const ALLOWED: &str = "is no rule for a client; allowed are a name, a role and a tenant or *, such as \
                               uri:spiffe://prod/shop publisher shop";
        let words: Vec<&str> = text.split_whitespace().collect();
        let [name, role, scope] = words[..] else { return Err(Problem::new(ALLOWED)) };
        let name = CertificateName::parse(name).ok_or_else(|| {
            Problem::new(format!("has the name {name}; allowed are dns:NAME, uri:URI and email:ADDRESS"))
        })?;
        let named = |what: &str, problem: Problem| Problem::new(format!("has the {what}, which {problem}"));
        let role = Role::parse(role).map_err(|problem| named(&format!("role {role}"), problem))?;
        let scope = Scope::parse(scope).map_err(|problem| named(&format!("tenant {scope}"), problem))?;
        Ok(Self { name, role, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_name_a_role_and_a_tenant() {
        let rule = ClientRule::parse("dns:Shop.Internal  publisher shop").expect("a rule");
        assert_eq!((rule.name.to_string(), rule.role), ("dns:shop.internal".to_owned(), Role::Publisher));
        assert_eq!(rule.scope.to_string(), "shop");
        assert_eq!(ClientRule::parse("email:a@b admin *").expect("a rule").scope, Scope::All);
        for bad in ["", "dns:a admin", "dns:a admin * *", "ip:1.2.3.4 admin *", "dns: admin *", "uri:x root *"] {
            assert!(ClientRule::parse(bad).is_err(), "{bad}");
        }
    }
}
