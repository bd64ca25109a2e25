//! Who made a call: the one place where a request's tenant is resolved and a resource's tenant is judged.
//!
//! A tenant that is named and foreign is refused (`TENANT_DENIED`); an id of a foreign tenant is not there
//! (`…_NOT_FOUND`): whoever guesses ids learns nothing.

use std::sync::Arc;

use tonic::{Request, Status};

use crate::api::convert::Violations;
use crate::api::{status, under_way};
use crate::domain::access::{Need, Role, Scope};
use crate::domain::fields::Tenant;

/// Who made a call. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::api) struct Caller(Arc<Identity>);

#[derive(Debug)]
struct Identity {
    name: String,
    role: Role,
    scope: Scope,
}

impl Caller {
    /// The holder of a credential.
    pub(super) fn new(name: String, role: Role, scope: Scope) -> Self {
        Self(Arc::new(Identity { name, role, scope }))
    }

    /// Whoever calls where nobody is asked.
    pub(in crate::api) fn anyone() -> Self {
        Self::new(String::new(), Role::Admin, Scope::All)
    }

    /// For people: the key's name, or the certificate's; empty where nobody is asked.
    pub(in crate::api) fn name(&self) -> &str {
        &self.0.name
    }

    /// The role, for words.
    pub(super) fn role(&self) -> Role {
        self.0.role
    }

    /// Whether the role is enough.
    pub(super) fn may(&self, need: Need) -> bool {
        self.0.role.may(need)
    }

    /// Whether endpoints' headers and the secret parts of their URLs are shown to this caller.
    pub(in crate::api) fn sees_secrets(&self) -> bool {
        self.0.role == Role::Admin
    }

    /// Whether there is no tenant whose things this caller may not touch: then ids need not be looked at first.
    pub(in crate::api) fn owns_all(&self) -> bool {
        self.0.scope == Scope::All
    }

    /// Whether a resource of that tenant is there, for this caller.
    pub(in crate::api) fn owns(&self, tenant: &Tenant) -> bool {
        self.0.scope.covers(tenant)
    }

    /// The tenant that a request means: the named one, or else the caller's own.
    pub(in crate::api) fn tenant(&self, path: &'static str, named: &str, v: &mut Violations) -> Option<Tenant> {
        if named.is_empty() {
            return Some(self.0.scope.home());
        }
        let tenant = v.take(path, Tenant::parse(named))?;
        if !self.owns(&tenant) {
            v.deny_tenant(named);
            return None;
        }
        Some(tenant)
    }

    /// Whose things a list, statistics or a stream shows. `*` means everybody's, as `None`, and is for keys of all
    /// tenants alone.
    pub(in crate::api) fn tenants(
        &self,
        path: &'static str,
        named: &str,
        v: &mut Violations,
    ) -> Option<Option<Tenant>> {
        if named != "*" {
            return self.tenant(path, named, v).map(Some);
        }
        if !self.owns_all() {
            v.deny_tenant(named);
            return None;
        }
        Some(None)
    }

    /// What a page token is bound to for a request that names that tenant.
    pub(in crate::api) fn meant(&self, named: &str) -> String {
        if named.is_empty() { self.0.scope.home().to_string() } else { named.to_owned() }
    }
}

/// The caller whom the layer let in, and what they ask for.
pub(in crate::api) fn admitted<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let (_, mut extensions, message) = request.into_parts();
    match extensions.remove::<Caller>() {
        Some(caller) => Ok((caller, message)),
        None => {
            tracing::error!(
                call = under_way::call(),
                trace_id = under_way::trace_id(),
                "a call came past the layer that asks who makes it"
            );
            Err(status::internal())
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn caller(scope: &str) -> Caller {
        Caller::new("test".to_owned(), Role::Viewer, Scope::parse(scope).expect("a scope"))
    }

    fn check(scope: &str, named: &str, expected: Result<Option<&str>, Code>) {
        let mut v = Violations::new();
        let tenants = caller(scope).tenants("tenant", named, &mut v);
        match expected {
            Ok(expected) => assert_eq!(tenants.expect("allowed").as_ref().map(Tenant::as_str), expected),
            Err(code) => assert_eq!(v.into_status().code(), code, "{scope} {named}"),
        }
    }

    #[test]
    fn an_unnamed_tenant_is_the_callers_own_and_a_foreign_one_is_denied() {
        check("shop", "", Ok(Some("shop")));
        check("shop", "shop", Ok(Some("shop")));
        check("shop", "default", Err(Code::PermissionDenied));
        check("shop", "*", Err(Code::PermissionDenied));
        check("shop", "a b", Err(Code::InvalidArgument));
        check("*", "", Ok(Some("default")));
        check("*", "shop", Ok(Some("shop")));
        check("*", "*", Ok(None));
    }

    #[test]
    fn a_star_is_no_tenant_for_a_single_thing() {
        let mut v = Violations::new();
        assert_eq!(caller("*").tenant("tenant", "*", &mut v), None);
        assert_eq!(v.into_status().code(), Code::InvalidArgument);
    }

    #[test]
    fn a_call_past_the_layer_is_not_answered() {
        assert_eq!(admitted(Request::new(())).expect_err("no caller").code(), Code::Internal);
    }
}
