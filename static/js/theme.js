// Blocking and tiny: marks that scripts run and sets the stored theme before the first paint.
document.documentElement.classList.add("js");
try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the theme follows the system.
}
