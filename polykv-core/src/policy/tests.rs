use super::*;

#[test]
fn every_policy_builds_with_defaults_and_reports_its_name() {
    let policies = Policies::default();
    for entry in policies.iter() {
        let policy = policies.build(&entry.name, &Params::new()).unwrap();
        assert_eq!(policy.name(), entry.name);
        let again = policies.build(&entry.name, &policy.params()).unwrap();
        assert_eq!(again.params(), policy.params());
        assert_eq!(again.key(), policy.key());
        for variant in &entry.variants {
            policies
                .build(&entry.name, &Params::from_yaml(variant).unwrap())
                .unwrap();
        }
    }
}

#[test]
fn unknown_names_and_parameters_are_refused_by_name() {
    let policies = Policies::default();
    let refused = |name: &str, params: &str| {
        let params = Params::from_yaml(params).unwrap();
        policies.build(name, &params).unwrap_err().to_string()
    };
    let error = refused("snapvk", "{}");
    assert!(
        error.contains("'snapvk'") && error.contains("snapkv"),
        "{error}"
    );
    let error = refused("snapkv", "{windw: 32}");
    assert!(
        error.contains("windw") && error.contains("window"),
        "{error}"
    );
    let error = refused("snapkv", "{kernel: 4}");
    assert!(error.contains("kernel") && error.contains("odd"), "{error}");
}

/// Whatever counts entries, queries or positions has one range.
#[test]
fn huge_parameters_are_refused() {
    let policies = Policies::default();
    for entry in policies.iter() {
        let defaults = policies
            .build(&entry.name, &Params::new())
            .unwrap()
            .params();
        for name in defaults.names().filter(|name| *name != "seed") {
            if defaults.get::<usize>(name).is_some() {
                for value in [1 << 21, 1 << 31, usize::MAX / 2] {
                    let params = Params::new().with(name, value);
                    let error = policies
                        .build(&entry.name, &params)
                        .unwrap_err()
                        .to_string();
                    assert!(error.contains(&format!("found {value}")), "{error}");
                }
            }
        }
    }
}

#[derive(Debug)]
struct Latest;

impl Policy for Latest {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::new()
    }

    fn score(&self, _state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        Ok(view.positions.clone().float())
    }
}

impl NamedPolicy for Latest {
    const NAME: &'static str = "latest";
    const SUMMARY: &'static str = "the latest positions";
    const SOURCE: Option<&'static str> = None;

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        match params.is_empty() {
            true => Ok(Self),
            false => Err("no parameters".into()),
        }
    }
}

#[test]
fn strangers_join_the_list_and_other_policies_find_them_there() {
    let mut policies = Policies::default();
    policies.register::<Latest>().unwrap();
    assert!(policies.register::<Latest>().is_err());
    policies.build("latest", &Params::new()).unwrap();
    let params = Params::new().with("policies", "latest:1,tova:1");
    policies.build("blend", &params).unwrap();
    assert!(Policies::default().build("blend", &params).is_err());
}
