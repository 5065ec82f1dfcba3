//! The cluster's own certificates: one authority, elliptic curves, valid for a day, made with `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// An empty configuration, so that certificates hold what is asked for and nothing of the machine's.
const CONFIG: &str = "[req]\ndistinguished_name = name\n[name]\n";

/// An authority and what it has signed, in a folder.
pub struct Pki {
    folder: PathBuf,
    authority: PathBuf,
}

/// A certificate and its private key, both PEM.
pub struct Identity {
    /// The file of the certificate.
    pub certificate: PathBuf,
    /// The file of the key.
    pub key: PathBuf,
}

impl Pki {
    /// A new authority in a new folder.
    pub fn new(folder: &Path) -> Result<Pki> {
        fs::create_dir(folder)?;
        fs::write(folder.join("openssl.cnf"), CONFIG)?;
        let pki = Pki { folder: folder.to_owned(), authority: folder.join("authority.crt") };
        pki.make("authority", "/CN=lab", &["basicConstraints=critical,CA:TRUE"])?;
        Ok(pki)
    }

    /// The certificate that everybody trusts.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// The certificate by which a user with these groups is known; made once.
    pub fn identity(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        self.signed(user, groups, "clientAuth", None)
    }

    /// The certificate of a server, which may be a client too; `names` are for example `DNS:localhost,IP:127.0.0.1`.
    pub fn server(&self, user: &str, groups: &[&str], names: &str) -> Result<Identity> {
        self.signed(user, groups, "serverAuth,clientAuth", Some(names))
    }

    fn signed(&self, user: &str, groups: &[&str], usage: &str, names: Option<&str>) -> Result<Identity> {
        let file = format!("{}-{}", user.replace([':', '/'], "-"), groups.join("-").replace([':', '/'], "-"));
        let identity = Identity {
            certificate: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        if !identity.certificate.exists() {
            let groups: String = groups.iter().map(|group| format!("/O={group}")).collect();
            let mut extensions =
                vec!["basicConstraints=critical,CA:FALSE".to_owned(), format!("extendedKeyUsage={usage}")];
            extensions.extend(names.map(|names| format!("subjectAltName={names}")));
            let extensions: Vec<&str> = extensions.iter().map(String::as_str).collect();
            self.make(&file, &format!("{groups}/CN={user}"), &extensions)?;
        }
        Ok(identity)
    }

    /// Makes `FILE.key` and `FILE.crt`, signed by the authority unless there is none yet.
    fn make(&self, file: &str, subject: &str, extensions: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        command
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-noenc",
                "-days",
                "1",
            ])
            .args(["-subj", subject])
            .arg("-config")
            .arg(self.folder.join("openssl.cnf"))
            .arg("-keyout")
            .arg(self.folder.join(format!("{file}.key")))
            .arg("-out")
            .arg(self.folder.join(format!("{file}.crt")));
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        if self.authority.exists() {
            command.arg("-CA").arg(&self.authority).arg("-CAkey").arg(self.folder.join("authority.key"));
        }
        let output = command.output().context("cannot start openssl")?;
        if !output.status.success() {
            bail!("openssl {subject}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Writes a kubeconfig beside the identity's files.
    pub fn kubeconfig(&self, identity: &Identity, server: &str) -> Result<PathBuf> {
        let port_and_host = server.trim_start_matches("https://").replace(':', "-");
        let path = identity.certificate.with_extension(format!("{port_and_host}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters:\n- name: lab\n  cluster: {{server: {server:?}, certificate-authority: {:?}}}\n\
             users:\n- name: user\n  user: {{client-certificate: {:?}, client-key: {:?}}}\n\
             contexts:\n- name: lab\n  context: {{cluster: lab, user: user}}\n",
            self.authority, identity.certificate, identity.key
        );
        fs::write(&path, text)?;
        Ok(path)
    }
}
