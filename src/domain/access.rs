//! Who may do what: roles, what a call needs, and whose things a caller may touch. Which call needs what is the edge's
//! table.

use std::fmt;

use super::Problem;
use super::fields::Tenant;

/// What a caller is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything.
    Admin,
    /// Publishes, and reads what became of it.
    Publisher,
    /// Reads everything but secrets, and acts on what exists: retries, pauses, tests.
    Operator,
    /// Reads everything but secrets.
    Viewer,
}

/// What a call needs its caller to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To read endpoints, dead letters, replays, alerts and statistics.
    Read,
    /// To read events and deliveries, which publishers do, too.
    Follow,
    /// To publish.
    Publish,
    /// To act on deliveries and on how endpoints run.
    Operate,
    /// To make, change and delete endpoints.
    Administer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Publisher, Self::Operator, Self::Viewer];

    /// Whether this role fulfils the need.
    pub const fn may(self, need: Need) -> bool {
        match (self, need) {
            (Self::Admin, _) => true,
            (Self::Publisher, Need::Publish | Need::Follow) => true,
            (Self::Operator, Need::Read | Need::Follow | Need::Operate) => true,
            (Self::Viewer, Need::Read | Need::Follow) => true,
            (Self::Publisher | Self::Operator | Self::Viewer, _) => false,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Publisher => "publisher",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }

    /// Reads its name.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| Problem::new("is no role; allowed are admin, publisher, operator and viewer"))
    }

    /// As the database stores it.
    pub const fn number(self) -> i16 {
        match self {
            Self::Admin => 1,
            Self::Publisher => 2,
            Self::Operator => 3,
            Self::Viewer => 4,
        }
    }

    /// From the database.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.number() == number)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The roles that fulfil a need, in words: `admin or operator`.
pub fn roles_for(need: Need) -> String {
    let names: Vec<_> = Role::ALL.into_iter().filter(|role| role.may(need)).map(Role::as_str).collect();
    names.join(" or ")
}

/// Whose things a caller may touch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One tenant's.
    Tenant(Tenant),
    /// Everybody's.
    All,
}

impl Scope {
    /// Whether the tenant's things are among them.
    pub fn covers(&self, tenant: &Tenant) -> bool {
        match self {
            Self::Tenant(own) => own == tenant,
            Self::All => true,
        }
    }

    /// The tenant that is meant where none is named.
    pub fn home(&self) -> Tenant {
        match self {
            Self::Tenant(own) => own.clone(),
            Self::All => Tenant::default_tenant(),
        }
    }

    /// Reads a tenant, or `*` for all.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "*" => Ok(Self::All),
            "" => Err(Problem::new("is empty; allowed are a tenant and * for all of them")),
            _ => Tenant::parse(text).map(Self::Tenant),
        }
    }
}

/// As [`Scope::parse`] reads it.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(own) => own.fmt(f),
            Self::All => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_do_what_they_are_there_for_and_no_more() {
        for (need, roles) in [
            (Need::Read, "admin or operator or viewer"),
            (Need::Follow, "admin or publisher or operator or viewer"),
            (Need::Publish, "admin or publisher"),
            (Need::Operate, "admin or operator"),
            (Need::Administer, "admin"),
        ] {
            assert_eq!(roles_for(need), roles, "{need:?}");
        }
    }

    #[test]
    fn names_and_numbers_lead_back_to_the_role() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Ok(role));
            assert_eq!(Role::from_number(role.number()), Some(role));
        }
        assert!(Role::parse("root").is_err() && Role::from_number(0).is_none());
    }

    #[test]
    fn a_scope_covers_its_own_tenant_or_all() {
        let [shop, bank] = ["shop", "bank"].map(|name| Tenant::parse(name).expect("a tenant"));
        let own = Scope::parse("shop").expect("a scope");
        assert!(own.covers(&shop) && !own.covers(&bank) && own.home() == shop);
        let all = Scope::parse("*").expect("a scope");
        assert!(all.covers(&shop) && all.covers(&bank) && all.home() == Tenant::default_tenant());
        assert!(Scope::parse("").is_err() && Scope::parse("a b").is_err());
    }
}
