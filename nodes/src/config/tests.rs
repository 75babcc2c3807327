use std::time::Duration;

use super::*;

const FILE: &str = "cluster.toml";

fn variables(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

fn read(toml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::read(Some((Path::new(FILE), toml)), variables(environment))
}

fn accepted(toml: &str, environment: &[(&str, &str)]) -> Config {
    read(toml, environment).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The only mistake, as a person reads it.
fn refused(toml: &str, environment: &[(&str, &str)]) -> String {
    match read(toml, environment) {
        Ok(_) => panic!("accepted"),
        Err(ConfigErrors(errors)) if errors.len() == 1 => errors[0].to_string(),
        Err(errors) => panic!("more than one mistake: {errors}"),
    }
}

mod defaults {
    use super::*;

    const SHIPPED: &str = include_str!("../../../cluster.toml");

    #[test]
    fn the_shipped_file_says_exactly_the_defaults() {
        assert_eq!(accepted(SHIPPED, &[]).render(), Config::default().render());
    }

    #[test]
    fn the_shipped_file_names_every_knob() {
        let shipped = source::from_toml(Path::new(FILE), SHIPPED).expect("TOML");
        let all = source::from_toml(Path::new(FILE), &Config::default().render()).expect("TOML");
        assert_eq!(shipped.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
    }

    #[test]
    fn every_knob_of_the_shipped_file_has_its_reason() {
        for line in SHIPPED.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')) {
            assert!(line.contains(" # ") || line.contains("   # "), "no reason: {line}");
        }
    }

    #[test]
    fn the_names_that_scripts_rely_on_exist() {
        let config = accepted(
            "",
            &[
                ("ROOKERY__DATA_DIR", "/var/lib/rookery"),
                ("ROOKERY__GATEWAY__LISTEN", "0.0.0.0:80"),
                ("ROOKERY__GATEWAY__RATE_LIMITS", "false"),
                ("ROOKERY__SERVICES__POSTS__LISTEN", "0.0.0.0:3003"),
                ("ROOKERY__SERVICES__POSTS__DATABASE_URL", "postgres://posts:pw@db/posts"),
                ("ROOKERY__KAFKA__BROKERS", "k1:9092, k2:9092"),
            ],
        );
        assert_eq!(config.data_dir, Path::new("/var/lib/rookery"));
        assert_eq!(config.gateway.listen.to_string(), "0.0.0.0:80");
        assert!(!config.gateway.rate_limits);
        let posts = config.services.of(Role::Posts).expect("posts is a service");
        assert_eq!(posts.listen.to_string(), "0.0.0.0:3003");
        assert_eq!(posts.database_url.as_ref().expect("set").postgres().get_dbname(), Some("posts"));
        assert_eq!(config.kafka.brokers.len(), 2);
    }

    #[test]
    fn what_is_rendered_can_be_read_again() {
        let config = accepted("[lease]\nttl_ms = 4000\n[node]\nname = \"n7\"", &[]);
        assert_eq!(accepted(&config.render(), &[]).render(), config.render());
    }
}

mod layers {
    use super::*;

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = accepted("[lease]\nttl_ms = 4000", &[("ROOKERY__LEASE__TTL_MS", "5000")]);
        assert_eq!(config.lease.ttl, Duration::from_secs(5));
    }

    #[test]
    fn the_file_wins_over_the_defaults() {
        assert_eq!(accepted("[cluster]\nshards = 16", &[]).cluster.shards, 16);
    }

    #[test]
    fn an_empty_database_url_goes_back_to_the_embedded_one() {
        let config = accepted(
            "[services.users]\ndatabase_url = \"postgres://u:p@db/users\"",
            &[("ROOKERY__SERVICES__USERS__DATABASE_URL", "")],
        );
        assert!(config.services.users.database_url.is_none());
    }

    #[test]
    fn other_variables_are_not_ours() {
        accepted("", &[("ROOKERY_PG_BIN", "/opt/pg"), ("PATH", "/bin")]);
    }

    #[test]
    fn a_file_that_is_named_must_exist() {
        let error = Config::load(Some(Path::new("no/such/file.toml"))).expect_err("it does not exist");
        assert!(error.to_string().contains("no/such/file.toml: cannot be read"), "{error}");
    }
}

mod mistakes {
    use super::*;

    #[test]
    fn a_misspelled_key_is_named_with_line_value_and_the_right_one() {
        assert_eq!(
            refused("# first\n[gateway]\nlisen = \"0.0.0.0:80\"", &[]),
            "cluster.toml:3: there is no key `gateway.lisen` (set to \"0.0.0.0:80\"); did you mean `gateway.listen`?"
        );
    }

    #[test]
    fn a_misspelled_section_is_one_mistake() {
        assert_eq!(
            refused("[gatway]\nlisten = \"0.0.0.0:80\"\nrate_limits = true", &[]),
            "cluster.toml:2: there is no key `gatway`; did you mean `gateway`?"
        );
    }

    #[test]
    fn a_misspelled_empty_section_is_found() {
        assert_eq!(refused("[kafak]", &[]), "cluster.toml:1: there is no key `kafak`; did you mean `kafka`?");
    }

    #[test]
    fn a_key_of_another_section_is_found() {
        assert_eq!(
            refused("ttl_ms = 4000", &[]),
            "cluster.toml:1: there is no key `ttl_ms` (set to 4000); did you mean `lease.ttl_ms`?"
        );
    }

    #[test]
    fn a_misspelled_variable_is_named_with_the_right_one() {
        assert_eq!(
            refused("", &[("ROOKERY__GATEWAY__RATE_LIMIT", "false")]),
            "ROOKERY__GATEWAY__RATE_LIMIT: there is no key `ROOKERY__GATEWAY__RATE_LIMIT` (set to \"false\"); \
             did you mean `ROOKERY__GATEWAY__RATE_LIMITS`?"
        );
    }

    #[test]
    fn a_variable_in_lower_case_is_named_with_the_right_one() {
        let mistake = refused("", &[("ROOKERY__gateway__listen", "0.0.0.0:80")]);
        assert!(mistake.ends_with("did you mean `ROOKERY__GATEWAY__LISTEN`?"), "{mistake}");
    }

    #[test]
    fn a_number_out_of_bounds_is_told_the_nearest() {
        assert_eq!(
            refused("[cluster]\nshards = 100_000", &[]),
            "cluster.toml:2: `cluster.shards` cannot be 100000: expected a whole number from 1 to 4096; \
             did you mean `4096`?"
        );
    }

    #[test]
    fn a_number_below_zero_is_told_the_nearest() {
        let mistake = refused("[cluster]\nshards = -1", &[]);
        assert!(mistake.ends_with("did you mean `1`?"), "{mistake}");
    }

    #[test]
    fn a_misspelled_word_is_told_the_nearest() {
        assert_eq!(
            refused("", &[("ROOKERY__NODE__ROLES", "users,pots")]),
            "ROOKERY__NODE__ROLES: `node.roles` cannot be \"users,pots\": expected one of gateway, users, posts, \
             comments, search; did you mean `posts`?"
        );
    }

    #[test]
    fn a_value_of_another_type_is_named() {
        assert_eq!(
            refused("[gateway]\nrate_limits = \"yes\"", &[]),
            "cluster.toml:2: `gateway.rate_limits` cannot be \"yes\": expected true or false"
        );
    }

    #[test]
    fn a_section_where_a_value_belongs_is_named() {
        assert_eq!(
            refused("[gateway.listen]\nport = 80", &[]),
            "cluster.toml:2: `gateway.listen` cannot be a section: expected a single value"
        );
    }

    #[test]
    fn a_value_where_a_section_belongs_is_named() {
        assert_eq!(
            refused("gateway = 80", &[]),
            "cluster.toml:1: `gateway` cannot be a single value: expected a section with keys"
        );
    }

    #[test]
    fn a_syntax_error_is_named_with_its_line() {
        let mistake = refused("[gateway]\nlisten = \n", &[]);
        assert!(mistake.starts_with("cluster.toml:2: "), "{mistake}");
    }

    #[test]
    fn a_node_without_roles_is_refused() {
        let mistake = refused("[node]\nroles = []", &[]);
        assert!(mistake.contains("at least one of gateway"), "{mistake}");
    }

    #[test]
    fn a_renewal_that_is_too_slow_for_the_lease_is_refused() {
        assert_eq!(
            refused("[lease]\nrenew_ms = 1000", &[]),
            "cluster.toml:2: `lease.renew_ms` cannot be 1000: expected at most a third of lease.ttl_ms, so that one \
             lost renewal costs nothing; did you mean `833`?"
        );
    }

    #[test]
    fn a_log_level_that_would_silence_everything_is_refused() {
        let mistake = refused("[log]\nfilter = \"inof\"", &[]);
        assert!(mistake.ends_with("did you mean `info`?"), "{mistake}");
    }

    #[test]
    fn sasl_needs_name_and_password() {
        let mistake = refused("[kafka.sasl]\nmechanism = \"plain\"\nusername = \"ada\"", &[]);
        assert!(mistake.contains("`kafka.sasl.password`"), "{mistake}");
    }

    #[test]
    fn a_node_behind_every_interface_advertises_what_it_was_told_and_never_every_interface() {
        let every = "0.0.0.0:7400".parse().unwrap();
        let advertised = |toml: &str| accepted(toml, &[]).cluster.advertised(every);
        assert_eq!(advertised("[cluster]\nlisten = \"0.0.0.0:7400\""), None);
        let told = advertised("[cluster]\nlisten = \"0.0.0.0:7400\"\nadvertise = \"n1.example.org:7400\"");
        assert_eq!(told.as_deref(), Some("n1.example.org:7400"));
        let one = accepted("[cluster]\nlisten = \"10.0.0.1:7400\"", &[]);
        assert_eq!(one.cluster.advertised("10.0.0.1:7400".parse().unwrap()).as_deref(), Some("10.0.0.1:7400"));
    }

    #[test]
    fn a_node_that_is_to_be_found_must_listen() {
        let mistake = refused("[cluster]\nadvertise = \"n1:7400\"", &[]);
        assert!(mistake.contains("`cluster.listen`"), "{mistake}");
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let mistake = refused("[cluster.tls]\ncert_file = \"n1.pem\"", &[]);
        assert!(mistake.contains("`cluster.tls.key_file`"), "{mistake}");
        let mistake = refused("[cluster.tls]\nca_file = \"ca.pem\"", &[]);
        assert!(mistake.contains("`cluster.tls.cert_file`"), "{mistake}");
    }

    #[test]
    fn an_origin_with_a_path_is_told_the_one_without() {
        let mistake = refused("[gateway]\ncors_origins = [\"https://example.org/\"]", &[]);
        assert!(mistake.ends_with("did you mean `https://example.org`?"), "{mistake}");
    }

    /// What was broken: it was taken, and everybody on the way could read the password.
    #[test]
    fn a_password_goes_to_kafka_as_it_is_over_tls_only() {
        let plain = "[kafka.sasl]\nmechanism = \"plain\"\nusername = \"ada\"\npassword = \"x\"";
        let mistake = refused(plain, &[]);
        assert!(
            mistake.starts_with("cluster.toml:2: `kafka.sasl.mechanism` cannot be \"plain\": expected kafka.tls.enabled"),
            "{mistake}"
        );
        assert!(accepted(plain, &[("ROOKERY__KAFKA__TLS__ENABLED", "true")]).kafka.sasl.is_some());
        assert!(accepted(&plain.replace("plain", "scram-sha-256"), &[]).kafka.sasl.is_some());
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let Err(ConfigErrors(errors)) = read("[cluster]\nshards = 0\n[log]\nformat = \"xml\"", &[]) else { panic!("accepted") };
        assert_eq!(errors.len(), 2);
    }
}

mod places {
    use super::*;

    const SECRET: (&str, &str) = ("ROOKERY__SECRET", "0123456789abcdef0123456789abcdef");
    const LISTEN: (&str, &str) = ("ROOKERY__CLUSTER__LISTEN", "127.0.0.1:7400");

    fn urls() -> Vec<(&'static str, &'static str)> {
        vec![
            ("ROOKERY__SERVICES__USERS__DATABASE_URL", "postgres://u:p@db/users"),
            ("ROOKERY__SERVICES__POSTS__DATABASE_URL", "postgres://u:p@db/posts"),
            ("ROOKERY__SERVICES__COMMENTS__DATABASE_URL", "postgres://u:p@db/comments"),
            ("ROOKERY__SERVICES__SEARCH__DATABASE_URL", "postgres://u:p@db/search"),
        ]
    }

    #[test]
    fn a_node_with_a_private_database_is_alone_and_so_is_one_that_listens_for_nobody() {
        assert!(accepted("", &[&urls()[..3], &[LISTEN]].concat()).is_alone());
        assert!(accepted("", &urls()).is_alone());
        assert!(!accepted("", &[urls(), vec![LISTEN]].concat()).is_alone());
    }

    #[test]
    fn a_node_of_a_cluster_needs_its_databases_the_secret_and_an_address() {
        let environment = [urls(), vec![SECRET, LISTEN]].concat();
        accepted("", &environment).check_member().unwrap();
        let ConfigErrors(missing) = accepted("", &urls()[1..]).check_member().unwrap_err();
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(missing[2].starts_with("`cluster.listen` is not set") && missing[2].ends_with("ROOKERY__CLUSTER__LISTEN"));
        assert!(missing[0].starts_with("`services.users.database_url` is not set"), "{}", missing[0]);
        assert!(missing[0].contains("ROOKERY__SERVICES__USERS__DATABASE_URL_FILE"), "{}", missing[0]);
        assert!(missing[1].starts_with("`secret` is not set") && missing[1].contains("ROOKERY__SECRET_FILE"), "{}", missing[1]);
    }

    #[test]
    fn what_nobody_would_serve_is_named() {
        accepted("", &[]).check_whole().unwrap();
        let refused = accepted("[node]\nroles = [\"gateway\", \"posts\", \"search\"]", &[]).check_whole().unwrap_err();
        assert!(refused.to_string().contains("leaves out users, comments,"), "{refused}");
    }
}

mod secrets {
    use secrecy::ExposeSecret;

    use super::*;

    const SECRET: &str = "correct-horse-battery-staple-correct-horse";
    const URL: &str = "postgres://posts:hunter2hunter2@db.example/posts";

    fn with_every_secret() -> Config {
        accepted(
            "[kafka.sasl]\nmechanism = \"scram-sha-512\"\nusername = \"rookery\"\npassword = \"swordfish\"",
            &[("ROOKERY__SECRET", SECRET), ("ROOKERY__SERVICES__POSTS__DATABASE_URL", URL)],
        )
    }

    fn assert_nothing_leaks(text: &str) {
        for secret in [SECRET, URL, "hunter2hunter2", "swordfish"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }

    #[test]
    fn no_secret_appears_in_debug_output() {
        assert_nothing_leaks(&format!("{:?} {:#?}", with_every_secret(), with_every_secret()));
    }

    #[test]
    fn no_secret_appears_in_the_rendered_configuration() {
        let rendered = with_every_secret().render();
        assert_nothing_leaks(&rendered);
        assert_eq!(rendered.matches("\"<set>\"").count(), 3);
    }

    #[test]
    fn a_wrong_secret_is_not_repeated() {
        let mistake = refused("[services.posts]\ndatabase_url = \"postgres://:hunter2hunter2\"", &[]);
        assert!(mistake.starts_with("cluster.toml:2: `services.posts.database_url` cannot be <hidden>"), "{mistake}");
    }

    #[test]
    fn a_secret_under_a_misspelled_name_is_not_repeated() {
        assert_eq!(
            refused("", &[("ROOKERY__SECRT", SECRET)]),
            "ROOKERY__SECRT: there is no key `ROOKERY__SECRT`; did you mean `ROOKERY__SECRET`?"
        );
    }

    #[test]
    fn a_secret_can_come_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, format!("{SECRET}\n")).unwrap();
        let config = accepted("", &[("ROOKERY__SECRET_FILE", file.to_str().unwrap())]);
        assert_eq!(config.secret.expect("set").text().expose_secret(), SECRET);
    }

    #[test]
    fn a_database_url_can_come_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        // Some editors begin a file with a byte order mark.
        for written in [URL.to_owned(), format!("\u{FEFF}{URL}\r\n")] {
            fs::write(&file, written).unwrap();
            let config = accepted("", &[("ROOKERY__SERVICES__POSTS__DATABASE_URL_FILE", file.to_str().unwrap())]);
            assert_eq!(config.services.posts.database_url.expect("set").expose(), URL);
        }
    }

    #[test]
    fn a_database_url_says_how_far_tls_goes_in_the_words_that_it_knows() {
        for mode in ["disable", "prefer", "require"] {
            accepted("", &[("ROOKERY__SERVICES__POSTS__DATABASE_URL", &format!("{URL}?sslmode={mode}"))]);
        }
        for unknown in ["sslmode=verify-full", "sslrootcert=ca.pem"] {
            let mistake = refused("", &[("ROOKERY__SERVICES__POSTS__DATABASE_URL", &format!("{URL}?{unknown}"))]);
            assert!(mistake.contains("disable, prefer or require") && mistake.contains("SSL_CERT_FILE"), "{mistake}");
        }
    }

    #[test]
    fn a_secret_file_lies_beside_the_file_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), SECRET).unwrap();
        let toml = folder.path().join("cluster.toml");
        let config = Config::read(Some((&toml, "secret_file = \"secret\"")), []).unwrap();
        assert!(config.secret.is_some());
    }

    #[test]
    fn a_missing_secret_file_is_named() {
        let mistake = refused("", &[("ROOKERY__SECRET_FILE", "no/such/file")]);
        assert!(
            mistake.starts_with("ROOKERY__SECRET_FILE: the secret file no/such/file of `secret` cannot be read"),
            "{mistake}"
        );
    }

    #[test]
    fn a_secret_given_twice_is_refused() {
        let mistake = refused("", &[("ROOKERY__SECRET", SECRET), ("ROOKERY__SECRET_FILE", "file")]);
        assert!(mistake.ends_with("`secret` and `secret_file` are both set; set one of them"), "{mistake}");
    }

    #[test]
    fn a_secret_in_the_environment_replaces_the_file_of_one() {
        let config = accepted("secret = \"0123456789abcdef0123456789abcdef\"", &[("ROOKERY__SECRET", SECRET)]);
        assert_eq!(config.secret.expect("set").text().expose_secret(), SECRET);
    }

    #[test]
    fn a_short_secret_is_refused() {
        let mistake = refused("secret = \"short\"", &[]);
        assert!(mistake.contains("at least 32 bytes"), "{mistake}");
    }
}

proptest::proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(text in "[a-z_.\\[\\]=\" 0-9\n]{0,200}") {
        let _ = Config::read(Some((Path::new(FILE), &text)), []);
    }

    #[test]
    fn no_variable_makes_the_reader_panic(name in "(ROOKERY__)?[A-Z_a-z]{0,40}", value in ".{0,40}") {
        let _ = Config::read(None, variables(&[(&name, &value)]));
    }
}
