//! The plans that requests can have: the server's own, those of its folder by name, and uniform ones by policy and budget.

use super::fault::Fault;
use super::fields::Fields;
use crate::compression::{Placed, Source};
use crate::registry::registry;
use polykv::models::ModelConfig;
use polykv::policy::{Policies, PolicySpec};
use polykv::{Budget, Error, Plan, PlanFile, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Files of a folder of plans.
const MOST_FILES: usize = 1000;

/// A plan under the name that answers give it.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: String,
    pub hash: String,
    pub file: PlanFile,
    pub plan: Plan,
}

impl Named {
    fn of(name: String, source: Source, config: &ModelConfig) -> Result<Self> {
        let Placed { file, plan, .. } = source.plan(config)?;
        Ok(Self {
            name,
            hash: file.hash(),
            file,
            plan,
        })
    }

    /// What `/v1/plans` says of it.
    pub fn object(&self) -> Value {
        json!({"id": self.name, "object": "plan", "hash": self.hash, "budget": self.file.budget})
    }
}

/// The plans of a server.
#[derive(Debug)]
pub struct Plans {
    pub default: Arc<Named>,
    by_name: BTreeMap<String, Arc<Named>>,
    /// Names of the folder's plans for other models.
    pub others: Vec<String>,
}

impl Plans {
    /// The plan of the flags and those of a folder, as far as they are for the model.
    ///
    /// # Errors
    /// A folder that cannot be read, and any plan that is refused.
    pub fn read(source: Source, folder: Option<&Path>, config: &ModelConfig) -> Result<Self> {
        let default = Arc::new(Named::of(source.name(), source, config)?);
        let (mut by_name, mut others) = (BTreeMap::new(), Vec::new());
        for path in folder.map(files).transpose()?.unwrap_or_default() {
            let name = path.file_stem().map(|stem| stem.to_string_lossy());
            let name = name.unwrap_or_default().into_owned();
            let source = Source::file(&path, false)?;
            if let Source::File { file, .. } = &source
                && file
                    .check_model(config.layers.len(), &config.fingerprint())
                    .is_err()
            {
                others.push(name);
                continue;
            }
            let named = Named::of(name.clone(), source, config)?;
            by_name.insert(name, Arc::new(named));
        }
        Ok(Self {
            default,
            by_name,
            others,
        })
    }

    /// All of them, the default first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Named>> {
        std::iter::once(&self.default).chain(self.by_name.values())
    }

    /// The plan that a request's `polykv` object asks for, if it asks for one.
    ///
    /// # Errors
    /// A name that is none, a policy or a budget that is refused.
    pub fn chosen(
        &self,
        fields: &mut Fields,
        config: &ModelConfig,
    ) -> std::result::Result<Option<Arc<Named>>, Fault> {
        let plan: Option<String> = fields.take("plan")?;
        let policy: Option<String> = fields.take("policy")?;
        let budget: Option<Value> = fields.take("budget")?;
        match (plan, policy) {
            (Some(_), Some(_)) => Err(Fault::field(
                fields.path("policy"),
                "is given beside a plan",
            )),
            (None, None) if budget.is_none() => Ok(None),
            (Some(_), None) if budget.is_some() => Err(Fault::field(
                fields.path("budget"),
                "is given beside a plan, which has its own",
            )),
            (None, None) => Err(Fault::field(fields.path("budget"), "needs a policy")),
            (Some(name), None) => self.named(&name).map(Some).ok_or_else(|| {
                let names: Vec<_> = self.all().map(|named| named.name.as_str()).collect();
                let reason = format!("is '{name}'; allowed: {}", names.join(", "));
                Fault::field(fields.path("plan"), reason)
            }),
            (None, Some(policy)) => {
                let policy = PolicySpec::parse(&policy, &registry().policies)
                    .map_err(|reason| Fault::field(fields.path("policy"), reason))?;
                let budget = match budget {
                    None if policy.policy == Policies::KEEP => Budget::Ratio(1.0),
                    None => return Err(Fault::field(fields.path("budget"), "is missing")),
                    Some(value) => read_budget(&value).ok_or_else(|| {
                        let reason = format!(
                            "is {value}; allowed: a number of entries, or a share such as \"12.5%\""
                        );
                        Fault::field(fields.path("budget"), reason)
                    })?,
                };
                let refused =
                    |error: Error| Fault::field(fields.path("policy"), error.at("request"));
                let source = Source::uniform(&policy, budget).map_err(refused)?;
                let named = Named::of(source.name(), source, config).map_err(refused)?;
                Ok(Some(Arc::new(named)))
            }
        }
    }

    fn named(&self, name: &str) -> Option<Arc<Named>> {
        match name == self.default.name {
            true => Some(self.default.clone()),
            false => self.by_name.get(name).cloned(),
        }
    }
}

fn read_budget(value: &Value) -> Option<Budget> {
    match value {
        Value::String(text) => {
            let share: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
            Some(Budget::Ratio(share / 100.0))
        }
        value => Some(Budget::Tokens(usize::try_from(value.as_u64()?).ok()?)),
    }
}

/// The plan files of a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let io = |error| Error::io(folder, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) {
            found.push(path);
        }
        if found.len() > MOST_FILES {
            let allowed = format!("at most {MOST_FILES}");
            return Err(Error::invalid(
                folder.display(),
                "plan files",
                "more",
                allowed,
            ));
        }
    }
    found.sort();
    Ok(found)
}
