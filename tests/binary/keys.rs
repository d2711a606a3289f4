//! API keys, by the commands that make and end them.

use serde_json::Value;

use crate::process::{Ended, Folder};
use crate::support::{Engine, TestDatabase, until};

/// A folder with a database to keep keys in.
struct Keys<'a> {
    folder: Folder,
    variables: Vec<(&'a str, &'a str)>,
}

impl<'a> Keys<'a> {
    async fn new(variables: Vec<(&'a str, &'a str)>) -> Self {
        let keys = Self { folder: Folder::new(), variables };
        assert_eq!(keys.run(&["migrate", "run"]).await.code, Some(0));
        keys
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.folder.run(arguments, self.variables.iter().copied()).await
    }

    /// What `KEY=$(…)` gets.
    async fn made(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments).await;
        assert_eq!((ended.code, ended.out.len()), (Some(0), 1), "{ended:#?}");
        assert!(ended.err[0].starts_with("keep it now, it is not shown again; id "), "{ended:#?}");
        assert!(!ended.err.join("\n").contains(&ended.out[0]));
        ended.out[0].clone()
    }

    async fn states(&self) -> Vec<(String, String)> {
        let ended = self.run(&["key", "list", "--json"]).await;
        assert_eq!((ended.code, ended.err.len()), (Some(0), 0), "{ended:#?}");
        let keys: Value = serde_json::from_str(&ended.out.join("\n")).unwrap();
        let text = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
        keys.as_array().unwrap().iter().map(|k| (text(k, "hint"), text(k, "state"))).collect()
    }
}

#[tokio::test]
async fn keys_are_made_listed_rotated_and_taken_back() {
    story(vec![]).await;
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    story(vec![("DATABASE_URL", &database.url)]).await;
}

async fn story(variables: Vec<(&str, &str)>) {
    let keys = Keys::new(variables).await;
    let create = ["key", "create", "--name", "ci", "--scopes", "plans:read,plans:write"];
    let first = keys.made(&[&create[..], &["--expires", "90d"]].concat()).await;
    assert!(first.starts_with("plinth_") && first.len() == "plinth_".len() + 28, "{first}");
    let hint = |key: &str| key[.."plinth_".len() + 4].to_owned();

    let again = keys.run(&create).await;
    assert_eq!((again.code, again.out.len(), again.err.len()), (Some(1), 0, 1), "{again:#?}");
    assert!(again.err[0].contains("replace it with `key rotate ci`"), "{again:#?}");

    let second = keys.made(&["key", "rotate", "ci", "--overlap", "1h"]).await;
    let live = |key: &str| (hint(key), "live".to_owned());
    assert_eq!(keys.states().await, [live(&first), live(&second)]);
    let third = keys.made(&["key", "rotate", "ci", "--overlap", "0s"]).await;
    let expired = |key: &str| (hint(key), "expired".to_owned());
    assert_eq!(keys.states().await, [expired(&first), expired(&second), live(&third)]);

    let table = keys.run(&["key", "list"]).await;
    assert!(table.out[0].starts_with("ID ") && table.out[0].ends_with("SCOPES"), "{table:#?}");
    assert!(table.out[3].contains(" live ") && table.out[3].ends_with("plans:read,plans:write"));
    assert!(![&first, &second, &third].iter().any(|key| table.text().contains(*key)));

    let revoked = keys.run(&["key", "revoke", "ci"]).await;
    assert_eq!(
        (revoked.code, revoked.out.len(), revoked.err.len()),
        (Some(0), 0, 1),
        "{revoked:#?}"
    );
    assert_eq!(keys.states().await[2], (hint(&third), "revoked".into()));
    let none = keys.run(&["key", "revoke", "ci"]).await;
    assert_eq!((none.code, none.err.len()), (Some(1), 1), "{none:#?}");

    let fourth = keys.made(&["key", "create", "--name", "ci", "--scopes", "plans:*"]).await;
    assert_eq!(keys.states().await[3], live(&fourth));
}

#[tokio::test]
async fn what_cannot_be_done_is_said_in_one_line() {
    let folder = Folder::new();
    let early = folder.run(&["key", "list"], [("APP_DATABASE__MIGRATE_ON_START", "false")]).await;
    assert_eq!((early.code, early.err.len()), (Some(1), 1), "{early:#?}");
    assert!(early.err[0].contains("migrat"), "{early:#?}");

    let keys = Keys::new(vec![]).await;
    let long = "x".repeat(65);
    for (arguments, says) in [
        (&["create", "--name", "ci", "--scopes", "plans:reed"][..], "did you mean `plans:read`?"),
        (&["create", "--name", "ci", "--scopes", "users"], "take one of: plans:read, plans:write"),
        (&["create", "--name", "ci", "--scopes", "Plans"], "`Plans` is not a scope"),
        (&["create", "--name", "c i", "--scopes", "*"], "`c i` is not a name"),
        (&["create", "--name", &long, "--scopes", "*"], "is not a name"),
        (&["create", "--name", "ci", "--scopes", "*", "--expires", "1000y"], "century"),
        (&["rotate", "ci"], "there is no live key called `ci`"),
        (&["revoke", "01a07ad5-0000-7000-8000-000000000000"], "there is no live key called"),
    ] {
        let ended = keys.run(&[&["key"], arguments].concat()).await;
        assert_eq!((ended.code, ended.out.len()), (Some(1), 0), "{ended:#?}");
        assert_eq!(ended.err.len(), 1, "{ended:#?}");
        assert!(ended.err[0].contains(says), "{arguments:?}: {ended:#?}");
    }
    for wrong in [&["key"][..], &["key", "create", "--name", "ci"], &["key", "rotate"]] {
        assert_eq!(keys.run(wrong).await.code, Some(2), "{wrong:?}");
    }
    assert_eq!(keys.states().await, []);
}

#[tokio::test]
async fn check_reads_the_principals_file() {
    let folder = Folder::new();
    let file = folder.path().join("principals.toml");
    std::fs::write(&file, "[roles]\nreader = [\"plans:reed\"]\n[keys]\nci = [\"raeder\"]\n")
        .unwrap();
    let variables =
        [("APP_AUTH__MODE", "required"), ("APP_AUTH__PRINCIPALS_FILE", "principals.toml")];
    let ended = folder.run(&["check"], variables).await;
    let text = ended.text();
    assert_eq!(ended.code, Some(1), "{text}");
    assert!(text.contains("roles.reader, from principals.toml"), "{text}");
    assert!(text.contains("did you mean `plans:read`?") && text.contains("did you mean `reader`?"));

    std::fs::write(&file, "[roles]\nreader = [\"plans:read\"]\n").unwrap();
    assert_eq!(folder.run(&["check"], variables).await.code, Some(0));
}

#[tokio::test]
async fn a_hangup_reads_the_principals_file_again() {
    let folder = Folder::new();
    let file = folder.path().join("principals.toml");
    let roles = "[roles]\nwriter = [\"plans:write\"]\n";
    std::fs::write(&file, roles).unwrap();
    let variables =
        [("APP_AUTH__MODE", "required"), ("APP_AUTH__PRINCIPALS_FILE", "principals.toml")];
    let (mut process, url) = folder.serve(variables).await;
    let create = ["key", "create", "--name", "ci", "--scopes", "plans:read"];
    let key = folder.run(&create, []).await.out[0].clone();
    let scopes = async || {
        let me = reqwest::Client::new().get(format!("{url}/api/v1/me")).bearer_auth(&key);
        let me: serde_json::Value = me.send().await.unwrap().json().await.unwrap();
        me["scopes"].clone()
    };
    assert_eq!(scopes().await, serde_json::json!(["plans:read"]));

    std::fs::write(&file, format!("{roles}[keys]\nci = [\"writer\"]\n")).unwrap();
    process.signal(rustix::process::Signal::HUP);
    let both = serde_json::json!(["plans:read", "plans:write"]);
    until("the new roles hold", async || scopes().await == both).await;

    std::fs::write(&file, "[roles]\nwriter = [\"plans:wright\"]\n").unwrap();
    process.signal(rustix::process::Signal::HUP);
    process.line("no route asks for the scope `plans:wright`").await;
    assert_eq!(scopes().await, both, "the old ones stay");
}
