// What an application does with @azure/keyvault-keys: one part of it, by its name. Ends with "done", or throws.
const assert = require("node:assert/strict");
const crypto = require("node:crypto");
const { ClientSecretCredential } = require("@azure/identity");
const { KeyClient, CryptographyClient } = require("@azure/keyvault-keys");

const env = process.env;
const credential = new ClientSecretCredential(env.HOLDFAST_TENANT_ID, env.HOLDFAST_CLIENT_ID, env.HOLDFAST_CLIENT_SECRET, {
  authorityHost: env.HOLDFAST_AUTHORITY_URL, disableInstanceDiscovery: true,
});
// A host that is an address has no domain that the SDK could compare with the challenge's.
const options = { disableChallengeResourceVerification: true };
const client = new KeyClient(env.HOLDFAST_HSM_URL, credential, options);

async function collect(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

async function listings() {
  const names = Array.from({ length: 60 }, (_, n) => `js-${String(n).padStart(3, "0")}`);
  for (const name of names) await client.createEcKey(name, { hsm: true, curve: "P-256", tags: { by: "js" } });
  const found = (await collect(client.listPropertiesOfKeys())).map((item) => item.name).filter((name) => name.startsWith("js-"));
  assert.deepEqual(found.sort(), names, "each page leads to the next");
  for (let n = 1; n < 30; n++) await client.createEcKey("js-000", { hsm: true });
  const versions = await collect(client.listPropertiesOfKeyVersions("js-000"));
  assert.equal(new Set(versions.map((item) => item.version)).size, 30);
  assert.deepEqual(await collect(client.listPropertiesOfKeyVersions("never-there")), []);
  for (const name of names.slice(1, 31)) await (await client.beginDeleteKey(name, { intervalInMs: 20 })).pollUntilDone();
  const deleted = (await collect(client.listDeletedKeys())).map((item) => item.name);
  assert.deepEqual(deleted.filter((name) => name.startsWith("js-")).sort(), names.slice(1, 31));
  await (await client.beginRecoverDeletedKey(names[1], { intervalInMs: 20 })).pollUntilDone();
  assert.equal((await client.getKey(names[1])).name, names[1]);
  await client.purgeDeletedKey(names[2]);
}

async function wrapping() {
  const rsa = await client.createRsaKey("js-rsa", { hsm: true, keySize: 2048 });
  const aes = await client.createKey("js-aes", "oct-HSM", { keySize: 256, keyOps: ["wrapKey", "unwrapKey", "encrypt", "decrypt"] });
  const dek = crypto.randomBytes(32);
  for (const [key, algorithm] of [[rsa, "RSA-OAEP-256"], [rsa, "RSA-OAEP"], [aes, "A256KW"]]) {
    const use = new CryptographyClient(key, credential, options);
    const wrapped = await use.wrapKey(algorithm, dek);
    const opened = await use.unwrapKey(algorithm, wrapped.result);
    assert(Buffer.from(opened.result).equals(dek), algorithm);
    await assert.rejects(use.unwrapKey(algorithm, Buffer.alloc(wrapped.result.length, 1)));
  }
  const gcm = new CryptographyClient(aes, credential, options);
  const sealed = await gcm.encrypt({ algorithm: "A256GCM", plaintext: Buffer.from("hello"), additionalAuthenticatedData: Buffer.from("aad") });
  const opened = await gcm.decrypt({ algorithm: "A256GCM", ciphertext: sealed.result, iv: sealed.iv, authenticationTag: sealed.authenticationTag,
    additionalAuthenticatedData: Buffer.from("aad") });
  assert.equal(Buffer.from(opened.result).toString(), "hello");
  const ec = await client.createEcKey("js-ec", { hsm: true, curve: "P-384" });
  const signer = new CryptographyClient(ec, credential, options);
  const signed = await signer.signData("ES384", Buffer.from("message"));
  assert.equal((await signer.verifyData("ES384", Buffer.from("message"), signed.result)).result, true);
  assert.equal((await signer.verifyData("ES384", Buffer.from("massage"), signed.result)).result, false);
}

async function properties() {
  const expiresOn = new Date(Math.floor(Date.now() / 1000) * 1000 + 86_400_000);
  const made = await client.createEcKey("js-props", { hsm: true, expiresOn, notBefore: new Date(0), tags: { a: "b" } });
  assert.deepEqual(made.properties.expiresOn, expiresOn);
  const changed = await client.updateKeyProperties("js-props", { enabled: false, tags: { c: "d" } });
  assert.equal(changed.properties.enabled, false);
  assert.deepEqual((await client.getKey("js-props")).properties.tags, { c: "d" });
  const policy = await client.updateKeyRotationPolicy("js-props", { lifetimeActions: [{ action: "Rotate", timeAfterCreate: "P30D" }], expiresIn: "P90D" });
  assert.equal(policy.lifetimeActions[0].timeAfterCreate, "P30D");
  const older = (await client.getKey("js-props")).properties.version;
  await client.updateKeyProperties("js-props", { enabled: true });
  assert.notEqual((await client.rotateKey("js-props")).properties.version, older);
  assert.equal((await client.getRandomBytes(32)).length, 32);
  const backup = await client.backupKey("js-props");
  await (await client.beginDeleteKey("js-props", { intervalInMs: 20 })).pollUntilDone();
  const conflict = await client.createEcKey("js-props", { hsm: true }).catch((error) => error);
  assert.equal(conflict.statusCode, 409);
  await client.purgeDeletedKey("js-props");
  assert.equal((await client.restoreKeyBackup(backup)).properties.version.length, 32);
  const none = await client.getKey("js-none").catch((error) => error);
  assert.equal(none.statusCode, 404);
  assert.equal(none.code, "KeyNotFound");
}

({ listings, wrapping, properties })[process.argv[2]]().then(() => console.log("done"), (error) => { console.error(error); process.exit(1); });
