//! Credentials of the clusters: read, watch and renew, from Vault or a file.
