// Passkeys: a form with data-passkey asks the browser for a credential and sends it as JSON.
import { toast } from "./app.js";

const bytes = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
const text = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer)))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");

// The server speaks base64url where the browser wants bytes.
function options({ publicKey }) {
  const listed = (list) => list?.map((one) => ({ ...one, id: bytes(one.id) }));
  const user = publicKey.user && { ...publicKey.user, id: bytes(publicKey.user.id) };
  return {
    ...publicKey,
    challenge: bytes(publicKey.challenge),
    ...(user && { user, excludeCredentials: listed(publicKey.excludeCredentials) }),
    ...(!user && { allowCredentials: listed(publicKey.allowCredentials) }),
  };
}

function plain(credential) {
  const response = {};
  for (const name of ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"]) {
    if (credential.response[name]) response[name] = text(credential.response[name]);
  }
  if (credential.response.getTransports) response.transports = credential.response.getTransports();
  return {
    id: credential.id,
    rawId: text(credential.rawId),
    type: credential.type,
    response,
    clientExtensionResults: credential.getClientExtensionResults(),
    authenticatorAttachment: credential.authenticatorAttachment,
  };
}

async function asked(form) {
  if (!form.dataset.fetch) return JSON.parse(document.getElementById(form.dataset.options).textContent);
  const answer = await fetch(form.dataset.fetch, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}

async function credentialFor(form) {
  const data = await asked(form);
  if (form.dataset.passkey === "get") return navigator.credentials.get({ publicKey: options(data.request_options) });
  const publicKey = options(data.creation_options);
  const alone = form.elements.passwordless?.checked ?? false;
  publicKey.authenticatorSelection = {
    ...publicKey.authenticatorSelection,
    residentKey: alone ? "required" : "discouraged",
    requireResidentKey: alone,
    ...(alone && { userVerification: "required" }),
  };
  return navigator.credentials.create({ publicKey });
}

for (const form of document.querySelectorAll("form[data-passkey]")) {
  if (!window.PublicKeyCredential) {
    for (const button of form.querySelectorAll("button")) button.disabled = true;
    for (const hint of document.querySelectorAll("[data-no-passkeys]")) hint.hidden = false;
    continue;
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      form.elements.credential.value = JSON.stringify(plain(await credentialFor(form)));
      form.submit();
    } catch {
      // The person stopped it, or has no passkey here: the page stays as it is.
      toast(form.dataset.failed);
    }
  });
}
