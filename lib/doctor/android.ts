/** What Android does to programs in Termux. Much of it no app may ask about; then the advice is all there is. */
import { parseBattery } from '../cluster/device/battery.js';
import type { Check, Probes } from './types.js';

/** API levels. */
const ANDROID_12 = 31;
const ANDROID_12L = 32;
const ANDROID_14 = 34;
const LOW_BATTERY_PERCENT = 20;
/** Phones slow down around here. */
const WARM_CELSIUS = 43;

/** Which build of Termux this is; the variables are Termux's own. */
export function termuxBuild({ env }: Pick<Probes, 'env'>): 'f-droid' | 'github' | 'play' | 'other' | null {
  const release = env.TERMUX_APP__APK_RELEASE ?? env.TERMUX_APK_RELEASE;
  const version = env.TERMUX_VERSION;
  if (release === 'GOOGLE_PLAY_STORE' || version?.startsWith('googleplay')) return 'play';
  if (release === 'F_DROID') return 'f-droid';
  if (release === 'GITHUB') return 'github';
  return release === undefined && version === undefined ? null : 'other';
}

const termux: Check = {
  id: 'termux',
  title: 'Termux build',
  android: true,
  run: (probes) => {
    const build = termuxBuild(probes);
    const version = probes.env.TERMUX_VERSION ?? 'of unknown version';
    const advice = 'Install Termux from F-Droid or from github.com/termux/termux-app/releases.';
    if (build === null) return { status: 'warn', found: 'not Termux, or its variables are not set', advice };
    if (build === 'f-droid') return { status: 'ok', found: `${version} from F-Droid` };
    if (build === 'github') return { status: 'ok', found: `${version} from GitHub` };
    if (build === 'other') return { status: 'warn', found: `${version}, a build of somebody else`, advice };
    return {
      status: 'warn',
      found: `${version} from Google Play`,
      advice: `That build has other packages and, on Android 17, no access to the local network. ${advice} The builds are signed differently: back up your files, uninstall the old one first.`,
    };
  },
};

const wakeLock: Check = {
  id: 'wake-lock',
  title: 'wake lock',
  android: true,
  run: () => ({
    status: 'warn',
    found: 'cannot be seen from inside of Termux; its notification says "wake lock held" when it is',
    advice: 'Without it the phone computes in slow motion, or not at all, once its screen is off:\n  termux-wake-lock',
  }),
};

const phantomProcesses: Check = {
  id: 'phantom-processes',
  title: 'phantom process killer',
  android: true,
  run: async ({ androidSdk, exec }) => {
    if (androidSdk !== null && androidSdk < ANDROID_12) {
      return { status: 'ok', found: `Android of API level ${androidSdk} has none` };
    }
    // Apps may not read settings; root and adb's shell may.
    const setting = (await exec('settings', 'get', 'global', 'settings_enable_monitor_phantom_procs'))?.trim();
    if (setting === 'false') return { status: 'ok', found: 'switched off' };
    const readable = setting === 'true' || setting === 'null';
    return {
      status: 'warn',
      found: readable ? 'on' : 'on, unless you switched it off: apps may not read that setting',
      advice: `It ends programs with signal 9 when an app has many of them or they compute in the background.${phantomAdvice(androidSdk)}`,
    };
  },
};

function phantomAdvice(sdk: number | null): string {
  const adb = ' From a computer with adb:\n';
  if (sdk === ANDROID_12) {
    return `${adb}  adb shell device_config set_sync_disabled_for_tests persistent\n  adb shell device_config put activity_manager max_phantom_processes 2147483647`;
  }
  const command = `${adb}  adb shell settings put global settings_enable_monitor_phantom_procs false`;
  if (sdk !== null && sdk < ANDROID_14 && sdk >= ANDROID_12L) return command;
  return ` From Android 14 on: Settings, Developer options, Disable child process restrictions.${command}`;
}

const batteryOptimisation: Check = {
  id: 'battery-optimisation',
  title: 'battery optimisation',
  android: true,
  run: () => ({
    status: 'warn',
    found: 'cannot be seen from inside of Termux',
    advice:
      'Settings, Apps, Termux, Battery: Unrestricted. Some makers have a list of their own beside it (dontkillmyapp.com).',
  }),
};

const battery: Check = {
  id: 'battery',
  title: 'battery',
  android: true,
  run: async ({ exec }) => {
    const text = await exec('termux-battery-status');
    const state = text === null ? null : parseBattery(text);
    if (!state) {
      return {
        status: 'skip',
        found: 'not known: Termux:API does not answer',
        advice:
          'Optional. Install the app Termux:API from where Termux came from, and its commands:\n  pkg install termux-api',
      };
    }
    const { percent, charging, temperatureCelsius } = state;
    const heat = temperatureCelsius === null ? '' : `, ${temperatureCelsius.toFixed(0)} °C`;
    const found = `${percent} %, ${charging ? 'on power' : 'not on power'}${heat}`;
    if (temperatureCelsius !== null && temperatureCelsius >= WARM_CELSIUS) {
      return {
        status: 'warn',
        found,
        advice: 'A warm phone slows down. Take it out of its case, and off the charger.',
      };
    }
    if (percent < LOW_BATTERY_PERCENT && !charging) return { status: 'warn', found, advice: 'Plug it in.' };
    return { status: 'ok', found };
  },
};

export const androidChecks: readonly Check[] = [termux, wakeLock, phantomProcesses, batteryOptimisation, battery];
