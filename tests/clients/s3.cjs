// What an application does with @aws-sdk/client-s3: one part of it, by its name. Ends with "done", or throws.
const assert = require("node:assert/strict");
const crypto = require("node:crypto");
const { Readable } = require("node:stream");
const s3 = require("@aws-sdk/client-s3");
const { Upload } = require("@aws-sdk/lib-storage");
const { getSignedUrl } = require("@aws-sdk/s3-request-presigner");

const MIB = 1024 * 1024;
const [part, Bucket, kek] = process.argv.slice(2);
const client = new s3.S3Client({ endpoint: process.env.S3_URL, forcePathStyle: true, maxAttempts: 1 });
const ODD = ["plain", "päth/🔑 & <clé> +%41 'q'.txt", "ü/ñ", "𝄞", "\u{10ffff}", "a b+c%&\"", "new\nline\rback", "tab\tin"];

const send = (Command, more) => client.send(new s3[`${Command}Command`]({ Bucket, ...more }));
const read = async (Key, more) => Buffer.from(await (await send("GetObject", { Key, ...more })).Body.transformToByteArray());

async function refused(status, name, work) {
  const error = await work().then(() => null, (error) => error);
  assert(error, `${name} was expected, and nothing was refused`);
  assert.equal(error.$metadata?.httpStatusCode, status, `${error}`);
  assert.equal(error.name, name);
  assert(error.$metadata.requestId || name === "NotFound" || status === 304, "a request id comes with each answer");
  return error;
}

async function checksums() {
  const data = crypto.randomBytes(3 * MIB + 17);
  for (const ChecksumAlgorithm of ["CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"]) {
    const Key = `sum-${ChecksumAlgorithm}`, field = `Checksum${ChecksumAlgorithm}`;
    const whole = await send("PutObject", { Key, Body: data, ChecksumAlgorithm });
    assert(whole[field], "the service tells the checksum that it verified");
    // Of a stream the checksum follows the data, as a trailer.
    const streamed = await send("PutObject", { Key, Body: Readable.from([data.subarray(0, MIB), data.subarray(MIB)]), ContentLength: data.length, ChecksumAlgorithm });
    assert.equal(streamed[field], whole[field]);
    assert((await read(Key, { ChecksumMode: "ENABLED" })).equals(data), "and the client verifies it");
    const head = await send("HeadObject", { Key, ChecksumMode: "ENABLED" });
    assert.equal(head[field], whole[field]);
    await refused(400, "BadDigest", () => send("PutObject", { Key, Body: data.subarray(1), [field]: whole[field] }));
    assert((await read(Key)).equals(data), "a refused write changes nothing");
  }
  const plain = await send("PutObject", { Key: "sum-default", Body: data });
  assert(plain.ChecksumCRC32, "the SDK sends CRC32 unasked");
  const attributes = await send("GetObjectAttributes", { Key: "sum-default", ObjectAttributes: ["Checksum", "ObjectSize", "ETag"] });
  assert.equal(attributes.Checksum.ChecksumCRC32, plain.ChecksumCRC32);
  assert.equal(attributes.ObjectSize, data.length);
}

async function names() {
  for (const Key of ODD) {
    await send("PutObject", { Key, Body: Key, Metadata: { who: "me" } });
    assert.equal((await read(Key)).toString(), Key);
    assert.equal((await send("HeadObject", { Key })).Metadata.who, "me");
  }
  for (const EncodingType of ["url", undefined]) {
    const found = [];
    for await (const page of s3.paginateListObjectsV2({ client, pageSize: 3 }, { Bucket, EncodingType })) found.push(...page.Contents.map((item) => item.Key));
    const expected = EncodingType ? ODD.map((key) => encodeURIComponent(key)) : ODD;
    const plain = EncodingType ? found.map((key) => encodeURIComponent(decodeURIComponent(key.replaceAll("+", " ")))) : found;
    assert.deepEqual(plain.filter((key) => !key.startsWith("sum-")).sort(), expected.sort());
  }
  const copied = await send("CopyObject", { Key: "copied", CopySource: encodeURI(`${Bucket}/${ODD[1]}`).replaceAll("+", "%2B").replaceAll("&", "%26") });
  assert(copied.CopyObjectResult.ETag && copied.CopyObjectResult.LastModified instanceof Date);
  assert.equal((await read("copied")).toString(), ODD[1]);
  const gone = await send("DeleteObjects", { Delete: { Objects: [...ODD, "never there", "copied"].map((Key) => ({ Key })) } });
  assert.deepEqual(gone.Deleted.map((item) => item.Key).sort(), [...ODD, "never there", "copied"].sort());
  assert.equal(gone.Errors, undefined);
  for (const Key of ODD) await refused(404, "NotFound", () => send("HeadObject", { Key }));
}

async function multipart() {
  const data = crypto.randomBytes(13 * MIB);
  const upload = new Upload({ client, params: { Bucket, Key: "parts", Body: Readable.from(pieces(data)), ContentType: "text/x-odd" }, partSize: 5 * MIB });
  await upload.done();
  assert((await read("parts")).equals(data));
  assert((await read("parts", { Range: `bytes=${5 * MIB - 2}-${5 * MIB + 1}` })).equals(data.subarray(5 * MIB - 2, 5 * MIB + 2)));
  assert((await read("parts", { PartNumber: 2 })).equals(data.subarray(5 * MIB, 10 * MIB)));
  const { UploadId } = await send("CreateMultipartUpload", { Key: "left", ChecksumAlgorithm: "SHA256" });
  const part = await send("UploadPart", { Key: "left", UploadId, PartNumber: 1, Body: "small", ChecksumAlgorithm: "SHA256" });
  const open = await send("ListMultipartUploads", {});
  assert.deepEqual(open.Uploads.map((item) => item.Key), ["left"]);
  const Parts = [{ PartNumber: 1, ETag: part.ETag, ChecksumSHA256: part.ChecksumSHA256 }];
  await send("CompleteMultipartUpload", { Key: "left", UploadId, MultipartUpload: { Parts } });
  assert.equal((await read("left")).toString(), "small");
}

function* pieces(data) {
  for (let start = 0; start < data.length; start += 700_001) yield data.subarray(start, start + 700_001);
}

async function conditions() {
  const { ETag } = await send("PutObject", { Key: "once", Body: "first", IfNoneMatch: "*" });
  const error = await refused(412, "PreconditionFailed", () => send("PutObject", { Key: "once", Body: "second", IfNoneMatch: "*" }));
  assert.equal(error.Condition, "If-None-Match");
  await refused(412, "PreconditionFailed", () => send("PutObject", { Key: "once", Body: "second", IfMatch: '"0123"' }));
  await send("PutObject", { Key: "other", Body: "other" });
  await refused(412, "PreconditionFailed", () => send("CopyObject", { Key: "once", CopySource: `${Bucket}/other`, IfNoneMatch: "*" }));
  await refused(412, "PreconditionFailed", () => send("CopyObject", { Key: "once", CopySource: `${Bucket}/other`, IfMatch: '"0123"' }));
  await refused(412, "PreconditionFailed", () => send("DeleteObject", { Key: "once", IfMatch: '"0123"' }));
  await refused(304, "304", () => read("once", { IfNoneMatch: ETag })).catch((error) => { if (!/304|NotModified/.test(`${error}`)) throw error; });
  assert.equal((await read("once", { IfMatch: ETag })).toString(), "first");
  await refused(404, "NoSuchKey", () => read("none"));
}

async function presigned() {
  const Key = ODD[1];
  const put = await getSignedUrl(client, new s3.PutObjectCommand({ Bucket, Key, ContentType: "text/plain" }), { expiresIn: 60 });
  const sent = await fetch(put, { method: "PUT", body: "presigned", headers: { "content-type": "text/plain" } });
  assert.equal(sent.status, 200, await sent.text());
  const url = await getSignedUrl(client, new s3.GetObjectCommand({ Bucket, Key, ResponseContentDisposition: 'attachment; filename="x"' }), { expiresIn: 60 });
  const got = await fetch(url);
  assert.equal(await got.text(), "presigned");
  assert.equal(got.headers.get("content-disposition"), 'attachment; filename="x"');
  assert.equal((await fetch(url, { method: "DELETE" })).status, 403);
}

async function owners() {
  await refused(403, "AccessDenied", () => send("PutObject", { Key: "owned", Body: "x", ExpectedBucketOwner: "999999999999" }));
  await refused(404, "NotFound", () => send("HeadObject", { Key: "owned" }));
}

async function encryption() {
  const made = await send("PutObject", { Key: "kms", Body: "x", ServerSideEncryption: "aws:kms", SSEKMSKeyId: kek });
  assert.equal(made.SSEKMSKeyId, kek);
  assert.equal((await send("HeadObject", { Key: "kms" })).ServerSideEncryption, "aws:kms");
  if (process.env.S3_URL.startsWith("https:")) {
    const own = { SSECustomerAlgorithm: "AES256", SSECustomerKey: crypto.randomBytes(32) };
    await send("PutObject", { Key: "own", Body: "mine", ...own });
    assert.equal((await read("own", own)).toString(), "mine");
    await refused(400, "InvalidRequest", () => read("own"));
  }
}

async function versions() {
  await send("PutBucketVersioning", { VersioningConfiguration: { Status: "Enabled" } });
  for (let n = 0; n < 30; n++) await send("PutObject", { Key: "v", Body: `${n}` });
  await send("DeleteObject", { Key: "v" });
  let KeyMarker, VersionIdMarker, count = 0;
  // A page is deleted before the next one is asked for, its marker with it.
  do {
    const page = await send("ListObjectVersions", { Prefix: "v", MaxKeys: 10, KeyMarker, VersionIdMarker });
    const Objects = [...(page.Versions ?? []), ...(page.DeleteMarkers ?? [])].map(({ Key, VersionId }) => ({ Key, VersionId }));
    assert(Objects.length, "a page that was promised is not empty");
    count += Objects.length;
    await send("DeleteObjects", { Delete: { Objects, Quiet: true } });
    [KeyMarker, VersionIdMarker] = page.IsTruncated ? [page.NextKeyMarker, page.NextVersionIdMarker] : [];
  } while (KeyMarker);
  assert.equal(count, 31);
}

async function main() {
  await send("CreateBucket", {});
  await s3.waitUntilBucketExists({ client, maxWaitTime: 10 }, { Bucket });
  await { checksums, names, multipart, conditions, presigned, owners, encryption, versions }[part]();
  const left = await send("ListObjectVersions", {});
  const Objects = (left.Versions ?? []).map(({ Key, VersionId }) => ({ Key, VersionId }));
  if (Objects.length) await send("DeleteObjects", { Delete: { Objects } });
  await send("DeleteBucket", {});
  await refused(404, "NotFound", () => send("HeadBucket", {}));
  console.log("done");
}

main().catch((error) => { console.error(error); process.exit(1); });
